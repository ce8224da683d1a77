"""A front-proxy authority and the certificates it signs, for tests of TLS on either side."""

import json
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """Signs client certificates."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("front-proxy-ca")
        self.certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def client(self, common_name: str, folder: Path) -> Path:
        """A file with a client's certificate and key."""
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        return self._issue(common_name, usage, folder)

    def server(self, address: str, folder: Path) -> Path:
        """A file with the certificate and key of a server at an IP address."""
        name = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        return self._issue(address, name, folder)

    def _issue(self, common_name: str, extension: x509.ExtensionType, folder: Path) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(_name(common_name), key.public_key())
            .add_extension(extension, False)
            .sign(self._key, hashes.SHA256())
        )
        path = folder / f"{common_name}-{certificate.serial_number}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def config_map(authority: Authority, *names: str) -> dict[str, Any]:
    """``kube-system/extension-apiserver-authentication``, as the API server writes it."""
    return {
        "data": {
            "requestheader-client-ca-file": authority.pem,
            "requestheader-allowed-names": json.dumps(names),
            "requestheader-username-headers": '["X-Remote-User"]',
            "requestheader-group-headers": '["X-Remote-Group"]',
        }
    }


def client_context(bundle: bytes, certificate: Path | None = None) -> ssl.SSLContext:
    """What a client trusts, and how it proves itself."""
    context = ssl.create_default_context(cadata=bundle.decode())
    context.check_hostname = False
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context
