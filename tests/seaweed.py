"""A real S3 server for tests: SeaweedFS on free ports, with one key pair and an empty bucket."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import requests

from serving.local import free_ports

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
BUCKET = "subpixel-test"
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class S3Server:
    """Where a running server listens, and how to reach it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """boto3's own settings for this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "NO_PROXY": "127.0.0.1",
        }

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def empty(self) -> None:
        """Delete all objects of the bucket."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=BUCKET, Key=item["Key"])


@contextmanager
def seaweed(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in `folder` until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    keys = folder / "s3.json"
    keys.write_text(json.dumps({"identities": [identity]}))
    services = ("master", "volume", "filer", "s3")
    ports = iter(free_ports(2 * len(services)))
    options = [f"-{name}{kind}={next(ports)}" for name in services for kind in (".port", ".port.grpc")]
    endpoint = "http://127.0.0.1:" + next(o for o in options if o.startswith("-s3.port=")).partition("=")[2]
    command = [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={keys}",
        *options,
        # a missing bucket must be an error here, as it is at AWS
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=100",
    ]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        server = S3Server(endpoint)
        _wait(server, process, folder / "weed.log")
        yield server
    finally:
        process.kill()  # SIGTERM takes it half a minute
        process.wait()


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    problem: Exception | None = None
    while time.monotonic() < deadline and process.poll() is None:
        try:
            requests.get(f"{server.endpoint}/healthz", timeout=2).raise_for_status()
            client = server.client()
            client.create_bucket(Bucket=BUCKET)
            # healthy before the first volume can be written: wait for a real object
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except Exception as error:
            problem = error
            time.sleep(0.2)
    raise RuntimeError(f"SeaweedFS did not start: {problem}\n{log.read_text(errors='replace')[-2000:]}")
