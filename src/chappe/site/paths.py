"""Where things are in a Site's directory, and what is a secret there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chappe.link.emitted import SPOOL
from chappe.link.values import KEY_FILE


@dataclass(frozen=True)
class SitePaths:
    """The places in the Site directory `root` (absolute)."""

    root: Path

    @classmethod
    def of(cls, directory: Path) -> SitePaths:
        """The places of a directory given in any form."""
        return cls(Path(directory).expanduser().resolve())

    @property
    def config(self) -> Path:
        """site.toml."""
        return self.root / "site.toml"

    @property
    def apps(self) -> Path:
        """App definitions, NAME.toml."""
        return self.root / "apps"

    @property
    def data(self) -> Path:
        """Working directories of Jobs."""
        return self.root / "data"

    @property
    def spool(self) -> Path:
        """Where Jobs leave messages for the agent to bring on."""
        return self.data / SPOOL

    @property
    def spool_marks(self) -> Path:
        """How far such files were read."""
        return self.outbox / "spools"

    @property
    def logs(self) -> Path:
        """Logs of the agent."""
        return self.root / "logs"

    @property
    def changed(self) -> Path:
        """Parameters that hooks changed for attempts to come; made when there are any."""
        return self.root / "changed"

    @property
    def ledger(self) -> Path:
        """One entry per start of a Job."""
        return self.root / "ledger"

    @property
    def secrets(self) -> Path:
        """Directory of the Site's secrets (0700)."""
        return self.root / "secrets"

    @property
    def token(self) -> Path:
        """The Site's token (0600)."""
        return self.secrets / "site.token"

    @property
    def signing_key(self) -> Path:
        """The Site's own Ed25519 key (0600), which signs what functions return."""
        return self.secrets / KEY_FILE

    @property
    def relay_cert(self) -> Path:
        """The certificate by which pilots know the relay."""
        return self.secrets / "relay-cert.pem"

    @property
    def relay_key(self) -> Path:
        """Its private key (0600)."""
        return self.secrets / "relay-key.pem"

    @property
    def trusted_keys(self) -> Path:
        """Whose Jobs may run here."""
        return self.root / "trusted_keys"

    @property
    def sessions(self) -> Path:
        """One directory per Session (0700)."""
        return self.root / "sessions"

    @property
    def outbox(self) -> Path:
        """The agent's own records (0700)."""
        return self.root / "outbox"

    @property
    def book(self) -> Path:
        """The journal of BatchJobs."""
        return self.outbox / "batch-jobs"

    @property
    def pid_file(self) -> Path:
        """Which process is the agent."""
        return self.outbox / "agent.json"

    @property
    def relay_place(self) -> Path:
        """Where the relay listens."""
        return self.outbox / "relay.json"

    @property
    def starting_file(self) -> Path:
        """Which process is about to be the agent."""
        return self.outbox / "agent-starting.json"

    @property
    def scheduler_records(self) -> Path:
        """What a scheduler adapter keeps."""
        return self.outbox / "scheduler"

    @property
    def calls(self) -> Path:
        """How often the scheduler was called."""
        return self.outbox / "scheduler-calls.json"

    @property
    def init_record(self) -> Path:
        """The ids of an initialisation that has begun."""
        return self.root / ".init.json"

    def session(self, session: str) -> Path:
        """The directory of one Session."""
        return self.sessions / session
