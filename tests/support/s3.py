"""What the S3 server under test can do, when it is not the usual one."""

import os
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def client() -> "S3Client":
    """A client of the tests' own; over TLS Ceph refuses the checksums that boto3 sends by default."""
    checksums = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    return boto3.session.Session().client("s3", config=checksums)


def require_conditions(bucket: str, *, versions: bool = False) -> None:
    """Skips the test where another server (UNLEARN_TEST_S3) ignores create-if-absent in this bucket.

    With `versions` the bucket keeps versions from then on, as one that is made with locks does.

    That such a bucket is refused has tests of its own; the usual server never skips.
    """
    if not os.environ.get("UNLEARN_TEST_S3"):
        return
    s3 = client()
    if versions:
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=bucket, Key="conditions", Body=b"x")
    try:
        s3.put_object(Bucket=bucket, Key="conditions", Body=b"x", IfNoneMatch="*")
    except ClientError:
        pass
    else:
        pytest.skip("this server ignores create-if-absent in a bucket with versions")
    finally:
        for version in s3.list_object_versions(Bucket=bucket, Prefix="conditions").get("Versions", []):
            s3.delete_object(Bucket=bucket, Key="conditions", VersionId=version["VersionId"])
