"""The serving certificate of the metrics API: made, renewed and kept in a Secret by the leader.

Every replica loads what the Secret holds. The key of the authority that signs is thrown away:
renewing makes another one, and the bundle holds the one before as long as it is valid, so that
nobody who still serves with the old certificate is refused. ``metrics_api.registration`` puts the
bundle into the APIService.
"""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sluice_operator.state import Object

VALIDITY: Final = timedelta(days=365)
RENEW_BEFORE: Final = timedelta(days=120)
CLOCK_SKEW: Final = timedelta(hours=1)
KEYS: Final = ("tls.crt", "tls.key", "ca.crt")
"""In the Secret's ``data``; the last is the bundle, the newest authority first."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate to serve with, in PEM.

    Attributes:
        chain: the certificate. key: its private key.
        bundle: the authorities that clients should trust.
        expires_at: UTC.
    """

    chain: bytes
    key: bytes
    bundle: bytes
    expires_at: datetime

    def __repr__(self) -> str:
        return f"<Identity until {self.expires_at:%Y-%m-%d}>"


def make(host_names: tuple[str, ...], now: datetime, previous: Identity | None = None) -> Identity:
    """A new identity for a server of these names, the most used first."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key, now)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host_names[0][:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in host_names]), False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False
        )
        .sign(authority_key, hashes.SHA256())
    )
    bundle = _pem(authority) + _still_valid(previous.bundle if previous else b"", now)
    return Identity(_pem(certificate), _private_pem(key), bundle, certificate.not_valid_after_utc)


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"sluice-metrics-api {now:%Y-%m-%dT%H:%M:%SZ}")]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(_SIGNS_CERTIFICATES, True)
        .sign(key, hashes.SHA256())
    )


_SIGNS_CERTIFICATES: Final = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def read(secret: Object) -> Identity | None:
    """What a Secret holds; None when it holds none, or not one that fits together."""
    data = secret.get("data") or {}
    try:
        chain, key, bundle = (base64.b64decode(data[name], validate=True) for name in KEYS)
        certificate = x509.load_pem_x509_certificate(chain)
        private = serialization.load_pem_private_key(key, None)
        x509.load_pem_x509_certificates(bundle)
    except (KeyError, ValueError, TypeError, binascii.Error):
        return None
    if private.public_key() != certificate.public_key():
        return None
    return Identity(chain, key, bundle, certificate.not_valid_after_utc)


def due(identity: Identity | None, host_names: tuple[str, ...], now: datetime) -> bool:
    """Whether another one should be made."""
    if identity is None or identity.expires_at - now < RENEW_BEFORE:
        return True
    certificate = x509.load_pem_x509_certificate(identity.chain)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return not set(host_names) <= set(names.get_values_for_type(x509.DNSName))


def secret_data(identity: Identity) -> dict[str, str]:
    """``data`` of the Secret."""
    values = (identity.chain, identity.key, identity.bundle)
    return {
        name: base64.b64encode(value).decode() for name, value in zip(KEYS, values, strict=True)
    }


def host_names(service: str, namespace: str) -> tuple[str, ...]:
    """What a Service is called; the API server asks for the first."""
    full = f"{service}.{namespace}.svc"
    return (full, f"{full}.cluster.local", f"{service}.{namespace}")


def _still_valid(bundle: bytes, now: datetime) -> bytes:
    """The newest authority of a bundle, if it is still good for something."""
    if not bundle:
        return b""
    newest = x509.load_pem_x509_certificates(bundle)[0]
    return _pem(newest) if newest.not_valid_after_utc > now else b""


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: Any) -> bytes:
    encoded: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return encoded
