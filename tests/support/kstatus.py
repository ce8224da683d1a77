"""What tools make of a status: kstatus, the library of kubectl, Flux and Helm."""

from typing import Any


def conditions(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["type"]: entry for entry in status["conditions"]}


def kstatus(status: dict[str, Any]) -> str:
    """What kubectl's, Flux's and Helm's library makes of it; in the order in which it looks."""
    for entry in status["conditions"]:
        if (entry["type"], entry["status"]) == ("Reconciling", "True"):
            return "InProgress"
        if (entry["type"], entry["status"]) == ("Stalled", "True"):
            return "Failed"
    return "Current" if conditions(status)["Ready"]["status"] == "True" else "InProgress"
