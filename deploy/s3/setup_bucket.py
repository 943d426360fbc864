"""Make the bucket, or bring one that is there into order; doing it twice changes nothing.

    python deploy/s3/setup_bucket.py BUCKET

Versions are kept and objects can be locked, because evidence is; locks are set on evidence alone, one by one, by
`UNLEARN_EVIDENCE_LOCK_DAYS`. There is no default lock: it would keep models and requests, which must be erasable. A
deletion removes older versions itself; a lifecycle rule is the second net.
"""

import argparse
import json
import secrets
import sys
from pathlib import Path
from typing import Any

ERASABLE = ("models/", "checkpoints/", "requests/", "references/", "manifests/", "audits/", "work/")
POLICY = Path(__file__).with_name("bucket.json")


def main() -> int:
    """Exit code 0 when the bucket is in order, 1 when it cannot be brought there."""
    parser = argparse.ArgumentParser(description="Make the bucket, or bring one that is there into order.")
    parser.add_argument("bucket")
    parser.add_argument("--plain", action="store_true", help="a bucket without versions and locks")
    parser.add_argument(
        "--no-policy", action="store_true", help="for a server without bucket policies, or with its own"
    )
    asked = parser.parse_args()

    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    when = "when_required"  # other checksums go as trailers, which servers other than AWS may not take over TLS
    try:
        checksums = Config(request_checksum_calculation=when, response_checksum_validation=when)
        s3 = boto3.session.Session().client("s3", config=checksums)
        print(*set_up(s3, asked.bucket, lock=not asked.plain), sep="\n")
        print(tried(s3, asked.bucket))
        if not asked.no_policy:
            print(set_policy(s3, asked.bucket))
    except ValueError as error:
        print(f"error: {asked.bucket}: {error}", file=sys.stderr)
        return 1
    except (BotoCoreError, ClientError) as error:
        print(f"error: {asked.bucket}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def set_up(s3: Any, bucket: str, *, lock: bool) -> list[str]:
    """What was done, a line each.

    Args:
        s3: A boto3 client.
        bucket: Its name.
        lock: Whether versions are kept and objects can be locked; only a new bucket can be made so.

    Raises:
        botocore.exceptions.ClientError: When the server refuses, or an older bucket cannot lock.
    """
    done = [_made(s3, bucket, lock)]
    if lock:
        # Asked for first: an older bucket that cannot lock is refused here, before anything is changed.
        rule = s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"].get("Rule")
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        done.append("versions are kept")
        if rule:
            s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
        done.append("objects can be locked, none is by default" + (" any more" if rule else ""))
    rules = [
        {
            "ID": f"erase {prefix}",
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
        for prefix in ERASABLE
    ]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    done.append(f"older versions of {', '.join(ERASABLE)} go after a day")
    return done


def set_policy(s3: Any, bucket: str) -> str:
    """Put bucket.json on the bucket, and keep the public out; what was done.

    Over plain HTTP the rule against plain HTTP is left out: it would shut everybody out, us first.
    """
    policy = json.loads(POLICY.read_text().replace("arn:aws:s3:::unlearning", f"arn:aws:s3:::{bucket}"))
    plain = s3.meta.endpoint_url.startswith("http:")
    if plain:
        policy["Statement"] = [rule for rule in policy["Statement"] if rule["Sid"] != "OnlyOverTls"]
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    shut = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=shut)
    return f"{'WITHOUT TLS' if plain else 'only over TLS'}, nothing public, evidence is written once and never removed"


def tried(s3: Any, bucket: str) -> str:
    """That one of two creations of an object was refused, which is what decides who was first.

    Raises:
        ValueError: When the server ignores the condition.
    """
    from botocore.exceptions import ClientError

    key, refused = f"probe/{secrets.token_hex(16)}", 0
    for _ in range(2):
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:
                raise
            refused += 1
    for version in s3.list_object_versions(Bucket=bucket, Prefix=key).get("Versions", []):
        s3.delete_object(Bucket=bucket, Key=key, VersionId=version["VersionId"])
    if refused != 1:
        raise ValueError(
            "the server writes over objects that it was told to create only if absent: it cannot be used so; some "
            "servers heed that in buckets without versions only: try a new bucket with --plain"
        )
    return "of two who create the same object one is first"


def _made(s3: Any, bucket: str, lock: bool) -> str:
    from botocore.exceptions import ClientError

    region = s3.meta.region_name
    where = {} if region in (None, "us-east-1") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=lock, **where)
        return f"made {bucket}"
    return f"{bucket} was there"


if __name__ == "__main__":
    sys.exit(main())
