"""One typed settings object, read from `KMSERVE_*` environment variables; unknown names are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ENV_PREFIX = "KMSERVE_"
MIB = 1024 * 1024
SECRET_BYTES: Final = 32
"""The least that production takes for the secret: as long as the digest of the HMAC that it keys."""


class Settings(BaseSettings):
    """The embedded default needs none of these set; production sets the URLs, the secret and the models.

    Neither an error nor the repr holds a value that may be secret: both end in logs.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "production"] = "development"
    data_dir: Path = Path("~/.local/share/kmserve")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    secret_key: SecretStr | None = None
    """Keys the HMAC of API keys. In development it is made and kept in the data directory; production must set it."""

    database_url: str | None = Field(default=None, repr=False)
    broker_url: str | None = Field(default=None, repr=False)
    qdrant_url: str | None = None
    qdrant_api_key: SecretStr | None = None
    object_store: str | None = None
    """Where modules are kept for all machines; the data directory is then a cache of it."""
    object_store_options: SecretStr | None = None
    disk_cache_bytes: int = Field(default=10 * 1024 * MIB, ge=0)

    generator_url: str | None = None
    """Of an OpenAI-compatible API up to its version; the texts that modules are distilled from are then asked of it, document and all."""
    generator_model: str | None = None
    generator_api_key: SecretStr | None = None

    base_model: str = "smollm2-135m-instruct"
    """The packaged default, a local directory, a .gguf file, or a hub id (the only case that downloads)."""
    embedder: str = "all-minilm-l6-v2"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    engine_threads: int | None = Field(default=None, ge=1)
    trainer_threads: int | None = Field(default=None, ge=1)
    module_slots: int = Field(default=16, ge=1)
    module_host_bytes: int = Field(default=512 * MIB, ge=0)
    max_batch_size: int = Field(default=16, ge=1)
    max_queue: int = Field(default=256, ge=1)
    kv_cache_tokens: int = Field(default=32768, ge=64)
    prefix_cache_tokens: int = Field(default=8192, ge=0)
    step_tokens: int = Field(default=512, ge=1)
    answer_seconds: float = Field(default=300.0, gt=0)
    max_rank: int = Field(default=32, ge=1)
    shipped_extractor: Literal["active", "installed", "off"] = "active"
    """What becomes of the extractor that ships for the packaged base model at the first start."""
    modules_wear_extractor: bool = False
    """Whether teacher and student wear the active extractor while a module is distilled."""

    max_upload_bytes: int = Field(default=50 * MIB, ge=1)
    max_document_characters: int = Field(default=2_000_000, ge=1)
    parse_seconds: int = Field(default=60, ge=1)
    parse_memory_bytes: int = Field(default=2048 * MIB, ge=64 * MIB)
    passage_tokens: int = Field(default=256, ge=16)

    lease_seconds: float = Field(default=60.0, gt=0)
    reap_seconds: float = Field(default=15.0, gt=0)
    ring_seconds: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    default_preset: Literal["quick", "standard", "paper"] = "quick"

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    metrics: Literal["key", "open", "off"] = "key"

    @model_validator(mode="after")
    def _production_has_a_secret(self) -> Settings:
        if self.environment == "production":
            length = 0 if self.secret_key is None else len(self.secret_key.get_secret_value().encode())
            if length < SECRET_BYTES:
                found = "it is not set" if length == 0 else f"it has {length}"
                raise ValueError(
                    f"KMSERVE_SECRET_KEY must have at least {SECRET_BYTES} random bytes in production, and {found}; "
                    "make one with `openssl rand -hex 32`"
                )
        return self

    @model_validator(mode="after")
    def _generator_is_complete(self) -> Settings:
        if (self.generator_url is None) != (self.generator_model is None):
            raise ValueError("KMSERVE_GENERATOR_URL and KMSERVE_GENERATOR_MODEL are set together or not at all")
        if self.generator_url is not None:
            address = urlsplit(self.generator_url)
            if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query or address.fragment:
                raise ValueError(
                    "KMSERVE_GENERATOR_URL is an http(s) address up to its version, as https://api.example.com/v1, without a key"
                )
        key = "" if self.generator_api_key is None else self.generator_api_key.get_secret_value()
        if not (key.isascii() and key.isprintable()) or key != key.strip():
            raise ValueError("KMSERVE_GENERATOR_API_KEY holds characters that no HTTP header may have")
        return self

    @cached_property
    def root(self) -> Path:
        """The data directory, absolute."""
        return self.data_dir.expanduser().absolute()

    @property
    def sql_url(self) -> str:
        """The database without a driver suffix: sqlite:///… or postgresql://…"""
        return self.database_url or f"sqlite:///{self.root / 'kmserve.db'}"

    @property
    def url(self) -> str:
        """Where this machine reaches the API."""
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, f"[{self.host}]" if ":" in self.host else self.host)
        return f"http://{shown}:{self.port}"

    @property
    def celery_url(self) -> str:
        return self.broker_url or "filesystem://"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings and refuse `KMSERVE_` names that no field has, which pydantic-settings lets pass for the environment."""
    names = environ if environ is not None else os.environ
    known = {ENV_PREFIX + field.upper() for field in Settings.model_fields}
    unknown = sorted(name for name in names if name.startswith(ENV_PREFIX) and name not in known)
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return Settings()
