"""The certificates of a test cluster and the kubeconfigs made of them.

Two authorities, as kubeadm has them: one for everybody, one for the aggregation layer. The names in
the leaves are those that Kubernetes' default RBAC bindings know, so nothing has to be granted.
Called by the box before it starts anything.
"""

import base64
import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .options import API_SERVICE_ADDRESS, CLUSTER_DOMAIN, NODE, NODE_ADDRESS, Site

LIFETIME = timedelta(days=30)
CLOCK_SKEW = timedelta(hours=1)
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

USERS = ("admin", "kcm", "scheduler", "kubelet", "proxy")
"""Those that get a kubeconfig; each has a leaf of the same name."""


class Authority:
    """A self-signed certificate authority that writes its leaves into one folder."""

    def __init__(self, folder: Path, name: str, common_name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        usage = _usage(signs_certificates=True)
        certificate = (
            _builder(self._subject, self._subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        _write(folder / name, self._key, certificate)

    def __repr__(self) -> str:
        return f"<Authority {self._subject.rfc4514_string()} in {self._folder}>"

    def issue(
        self,
        name: str,
        common_name: str,
        *usages: x509.ObjectIdentifier,
        organisation: str | None = None,
        alternative_names: tuple[str, ...] = (),
    ) -> None:
        """Write NAME.crt and NAME.key. Alternative names are DNS names or addresses."""
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organisation:
            parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(x509.Name(parts), self._subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if alternative_names:
            names = x509.SubjectAlternativeName([_general_name(each) for each in alternative_names])
            builder = builder.add_extension(names, critical=False)
        _write(self._folder / name, key, builder.sign(self._key, hashes.SHA256()))


def make(site: Site) -> None:
    """Write every certificate, the keys of ServiceAccount tokens, and a kubeconfig a user."""
    folder = site.certificates
    folder.mkdir(mode=0o700)
    authority = Authority(folder, "ca", "kubernetes")
    service = "kubernetes.default.svc"
    authority.issue(
        "apiserver",
        "kube-apiserver",
        SERVER,
        alternative_names=(
            "kubernetes",
            "kubernetes.default",
            service,
            f"{service}.{CLUSTER_DOMAIN}",
            "localhost",
            "127.0.0.1",
            NODE_ADDRESS,
            API_SERVICE_ADDRESS,
        ),
    )
    authority.issue(
        "kubelet",
        f"system:node:{NODE}",
        SERVER,
        CLIENT,
        organisation="system:nodes",
        alternative_names=(NODE, NODE_ADDRESS, "127.0.0.1"),
    )
    masters = "system:masters"
    authority.issue("apiserver-kubelet", "kube-apiserver-kubelet", CLIENT, organisation=masters)
    authority.issue("admin", "admin", CLIENT, organisation=masters)
    authority.issue("kcm", "system:kube-controller-manager", CLIENT)
    authority.issue("scheduler", "system:kube-scheduler", CLIENT)
    authority.issue("proxy", "system:kube-proxy", CLIENT)
    aggregation = Authority(folder, "front-proxy-ca", "front-proxy-ca")
    aggregation.issue("front-proxy", "front-proxy-client", CLIENT)
    _write_token_keys(folder)
    site.kubeconfig().parent.mkdir(mode=0o700)
    for user in USERS:
        _write_kubeconfig(site, user)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _write(stem: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    stem.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    stem.with_suffix(".key").write_bytes(_pem(key))


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write_token_keys(folder: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "sa.key").write_bytes(_pem(key))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "sa.pub").write_bytes(public)


def _write_kubeconfig(site: Site, user: str) -> None:
    def embedded(name: str) -> str:
        return base64.b64encode((site.certificates / name).read_bytes()).decode()

    cluster = {"server": site.api_url, "certificate-authority-data": embedded("ca.crt")}
    credentials = {
        "client-certificate-data": embedded(f"{user}.crt"),
        "client-key-data": embedded(f"{user}.key"),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": site.name, "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": site.name, "context": {"cluster": site.name, "user": user}}],
        "current-context": site.name,
    }
    site.kubeconfig(user).write_text(json.dumps(content, indent=1))  # JSON is YAML
