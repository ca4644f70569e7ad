"""Certificates for one cluster, made by the `openssl` command: the standard library has no authority."""

from __future__ import annotations

from pathlib import Path

from .layout import Layout
from .shell import run

DAYS = "30"
CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def subject(user: str, group: str | None = None) -> str:
    """An openssl subject; Kubernetes reads user and group from it."""
    return (f"/O={group}" if group else "") + f"/CN={user}"


def identities(layout: Layout) -> dict[str, str]:
    """Every client certificate: file name to subject."""
    return {
        "admin": subject("admin", "system:masters"),
        "controller-manager": subject("system:kube-controller-manager"),
        "scheduler": subject("system:kube-scheduler"),
        "proxy": subject("system:kube-proxy"),
        "kubelet-client": subject("kube-apiserver-kubelet-client", "system:masters"),
        "front-proxy": subject("front-proxy"),
        **{node.name: subject(f"system:node:{node.name}", "system:nodes") for node in layout.nodes},
    }


def api_names(layout: Layout) -> str:
    """What the API server's certificate is good for."""
    network = layout.network
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
    addresses = [network.api, network.first_service, "127.0.0.1"]
    return ",".join([f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses])


def make(layout: Layout) -> Path:
    """Write an authority, and every key and certificate signed by it; return their folder."""
    folder = layout.state / "pki"
    folder.mkdir(parents=True, mode=0o700)
    authority = ["openssl", "req", "-x509", *CURVE, "-days", DAYS, "-subj", subject("trenchcoat-local")]
    run([*authority, "-keyout", folder / "ca.key", "-out", folder / "ca.crt"])
    for name, who in identities(layout).items():
        _sign(folder, name, who, "extendedKeyUsage=clientAuth")
    serves = f"extendedKeyUsage=serverAuth\nsubjectAltName={api_names(layout)}"
    _sign(folder, "api", subject("kube-apiserver"), serves)
    private, public = folder / "service-account.key", folder / "service-account.pub"
    run(["openssl", "genrsa", "-out", private, "2048"])
    run(["openssl", "rsa", "-in", private, "-pubout", "-out", public])
    return folder


def _sign(folder: Path, name: str, who: str, extensions: str) -> None:
    key, request, certificate = (folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
    options = folder / f"{name}.ext"
    options.write_text(extensions + "\n")
    run(["openssl", "req", "-new", *CURVE, "-subj", who, "-keyout", key, "-out", request])
    by: list[str | Path] = [
        "-CA",
        folder / "ca.crt",
        "-CAkey",
        folder / "ca.key",
        "-CAcreateserial",
        "-days",
        DAYS,
    ]
    run(["openssl", "x509", "-req", "-in", request, *by, "-extfile", options, "-out", certificate])
    request.unlink()
    options.unlink()
