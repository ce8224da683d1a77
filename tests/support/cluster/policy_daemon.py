"""placeholder"""
import signal
signal.pause()
