#!/usr/bin/env bash
# Ceph RGW for `make test-ceph`: on Debian or Ubuntu, as root. Elsewhere install the same programs your own way.
set -euo pipefail
missing=()
for pair in radosgw:radosgw radosgw:radosgw-admin ceph-mon:ceph-mon ceph-osd:ceph-osd ceph-common:ceph; do
    command -v "${pair#*:}" >/dev/null || missing+=("${pair%%:*}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "install-ceph: missing ${missing[*]}; install them to run these tests" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
