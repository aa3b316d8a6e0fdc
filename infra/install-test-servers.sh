#!/usr/bin/env bash
# Real servers that the tests talk to and that no Python package ships: PostgreSQL, and Chromium for the page.
# On Debian or Ubuntu, as root. Elsewhere install them your own way; tests that miss one say so and are skipped.
set -euo pipefail
missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || missing+=(chromium)
command -v chromedriver >/dev/null || missing+=(chromium-driver)
[ ${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "install-test-servers: missing ${missing[*]}; install them, or their tests are skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
