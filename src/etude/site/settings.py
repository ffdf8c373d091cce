"""What the site is told at its start; secrets come from the environment only."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from etude.core import EtudeError

LEAST_SECRET = 16  # characters; a shorter one is found by trying
WRITING_S = 2.0  # that another process may take to write the secret it has just made
__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one site.

    Attributes:
        database: URL of the papers and their readers, None = the default (``Store``).
        ledger: URL of the ledger of trials, None = the default (``Ledger``).
        base_url: how the outside reaches the site, without a slash at its end: for mails and feeds.
        folder: where the site keeps its secret, uploads and reports.
        allow_trials: whether readers may start trials.
        token: what a reader must show to start a trial where the site is not on loopback only
            (ETUDE_TOKEN), or "".
        trial_s, trial_memory: wall time in seconds and memory in bytes that one trial may take.
        trial_queue: how many trials may wait.
        upload_bytes: size of the largest file that a reader may try a method on.
        secret: signs links and cookies (ETUDE_SECRET, else made once in `folder`).
        smtp: ``smtp://[USER:PASSWORD@]HOST:PORT`` or ``smtps://…`` (ETUDE_SMTP), or "": no mail.
        mail_from: the address of the digest's sender (ETUDE_MAIL_FROM).
        proxies: how many proxies in front are trusted to tell the reader's address.
        index: ``milvus://host:19530`` of a server that searches among the vectors, or "".

    Raises:
        EtudeError: a secret that can be guessed.
    """

    database: str | None = None
    ledger: str | None = None
    base_url: str = "http://127.0.0.1:8000"
    folder: Path = field(default_factory=lambda: Path("~/.etude/site").expanduser())
    allow_trials: bool = False
    token: str = field(default_factory=lambda: os.environ.get("ETUDE_TOKEN", ""), repr=False)
    trial_s: float = 300.0
    trial_memory: int = 2 << 30
    trial_queue: int = 20
    upload_bytes: int = 50_000_000
    secret: str = field(default_factory=lambda: os.environ.get("ETUDE_SECRET", ""), repr=False)
    smtp: str = field(default_factory=lambda: os.environ.get("ETUDE_SMTP", ""), repr=False)
    mail_from: str = field(
        default_factory=lambda: os.environ.get("ETUDE_MAIL_FROM", "etude@localhost")
    )
    proxies: int = 0
    index: str = field(default="", repr=False)  # a password may be in it

    def __post_init__(self) -> None:
        if self.secret and len(self.secret) < LEAST_SECRET:
            raise EtudeError(
                f"ETUDE_SECRET must have at least {LEAST_SECRET} characters: make one with "
                "openssl rand -hex 32, or leave it out"
            )

    def key(self) -> str:
        """The secret; without one in the environment, that of `folder`, made at first use.

        Raises:
            EtudeError: the folder cannot be written, or its secret was never written whole.
        """
        if self.secret:
            return self.secret
        path = self.folder / "secret"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                return _written(path)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32))
            return _written(path)
        except OSError as error:
            raise EtudeError(
                f"{path}: the site's secret cannot be kept: {error.strerror}"
            ) from None


def _written(path: Path) -> str:
    """The secret of a file, once whoever made it has written it.

    An empty one must never be taken: everybody could sign with it.
    """
    end = time.monotonic() + WRITING_S
    while len(found := path.read_text(encoding="ascii", errors="replace").strip()) < LEAST_SECRET:
        if time.monotonic() > end:
            raise EtudeError(
                f"{path} holds no whole secret: delete it; the site makes a new one, and links of "
                "earlier mails work no more"
            )
        time.sleep(0.02)
    return found
