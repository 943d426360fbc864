"""What the environment says: where things live. One prefix, `UNLEARN_`, plus the ecosystem's own names."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where models, runs and data live; everything under `home` unless one variable says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="UNLEARN_", env_ignore_empty=True, extra="ignore", populate_by_name=True
    )

    home: Path = Field(default=Path("unlearn-data"), description="Folder of everything embedded (UNLEARN_HOME)")
    store: str = Field(default="", description="Object store: a folder, or s3://bucket/prefix (UNLEARN_STORE)")
    tracking: str = Field(
        default="", validation_alias="MLFLOW_TRACKING_URI", description="MLflow (MLFLOW_TRACKING_URI)"
    )
    experiment: str = Field(default="unlearning", description="MLflow experiment (UNLEARN_EXPERIMENT)")
    data: Path | None = Field(default=None, description="Folder of real data sets (UNLEARN_DATA)")
    ledger_url: str = Field(default="", description="Ledger: sqlite:///file or postgresql://... (UNLEARN_LEDGER_URL)")
    ledger_key: Path | None = Field(
        default=None, description="File with the key of the digests in the ledger (UNLEARN_LEDGER_KEY)"
    )
    signing_key: Path | None = Field(
        default=None, description="File with the key that signs certificates (UNLEARN_SIGNING_KEY)"
    )
    mlflow_timeout: int = Field(
        default=10, ge=1, le=600, description="Seconds to wait for MLflow (UNLEARN_MLFLOW_TIMEOUT)"
    )
    speed: str = Field(
        default="", description="Switches of speed and memory: precision=bf16,micro_batch=32 (UNLEARN_SPEED)"
    )

    evidence_lock_days: int = Field(
        default=0, ge=0, le=36500, description="Days that evidence in a bucket is locked (UNLEARN_EVIDENCE_LOCK_DAYS)"
    )

    guards: str = Field(
        default="", description="Bounds of what goes without people: approvals=2,daily=500 (UNLEARN_GUARDS)"
    )
    reset_every: int = Field(
        default=20, ge=0, le=100_000, description="Batches until a full retrain; 0: never (UNLEARN_RESET_EVERY)"
    )
    retire_days: float = Field(
        default=7.0, ge=0, le=3650, description="Days that an old model is kept (UNLEARN_RETIRE_DAYS)"
    )

    @property
    def store_uri(self) -> str:
        """The object store in force."""
        return self.store or str(self.home.absolute() / "store")

    @property
    def ledger_uri(self) -> str:
        """The ledger's database in force."""
        return self.ledger_url or f"sqlite:///{self.home.absolute() / 'ledger.db'}"

    @property
    def ledger_key_file(self) -> Path:
        """Where the key of the ledger's digests is."""
        return self.ledger_key or self.home.absolute() / "ledger.key"

    @property
    def signing_key_file(self) -> Path:
        """Where the key that signs certificates is."""
        return self.signing_key or self.home.absolute() / "signing.pem"

    @property
    def tracking_uri(self) -> str:
        """The MLflow server or database in force."""
        return self.tracking or f"sqlite:///{self.home.absolute() / 'mlflow.db'}"

    @property
    def artifacts_uri(self) -> str:
        """Where MLflow keeps the files of an embedded database."""
        return (self.home.absolute() / "mlartifacts").as_uri()
