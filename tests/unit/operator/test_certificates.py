"""The metrics API's certificate: what it proves, when it is due, how it is renewed."""

import base64
from datetime import UTC, datetime, timedelta

from cryptography import x509

from sluice_operator.certificates import (
    RENEW_BEFORE,
    VALIDITY,
    due,
    host_names,
    make,
    read,
    secret_data,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NAMES = host_names("sluice-metrics-api", "sluice-system")


def test_it_is_signed_by_its_bundle_for_its_names() -> None:
    identity = make(NAMES, NOW)
    certificate = x509.load_pem_x509_certificate(identity.chain)
    (authority,) = x509.load_pem_x509_certificates(identity.bundle)
    certificate.verify_directly_issued_by(authority)
    assert NAMES[0] == "sluice-metrics-api.sluice-system.svc"
    assert not due(identity, NAMES, NOW)
    assert due(identity, host_names("sluice-metrics-api", "elsewhere"), NOW)


def test_it_survives_its_secret() -> None:
    identity = make(NAMES, NOW)
    assert read({"data": secret_data(identity)}) == identity


def test_what_does_not_fit_together_is_none() -> None:
    one, other = secret_data(make(NAMES, NOW)), secret_data(make(NAMES, NOW))
    assert read({}) is None
    assert read({"data": {}}) is None
    assert read({"data": one | {"tls.key": other["tls.key"]}}) is None
    assert read({"data": one | {"tls.crt": base64.b64encode(b"nothing").decode()}}) is None
    assert read({"data": one | {"ca.crt": "!"}}) is None
    assert due(None, NAMES, NOW)


def test_it_is_renewed_in_time_and_the_old_one_is_still_trusted() -> None:
    first = make(NAMES, NOW)
    later = NOW + VALIDITY - RENEW_BEFORE + timedelta(minutes=1)
    assert not due(first, NAMES, later - timedelta(hours=1))
    assert due(first, NAMES, later)
    second = make(NAMES, later, first)
    authorities = x509.load_pem_x509_certificates(second.bundle)
    assert len(authorities) == 2
    x509.load_pem_x509_certificate(second.chain).verify_directly_issued_by(authorities[0])
    x509.load_pem_x509_certificate(first.chain).verify_directly_issued_by(authorities[1])
    third = make(NAMES, later + VALIDITY, second)
    assert len(x509.load_pem_x509_certificates(third.bundle)) == 1, "the expired ones are dropped"
