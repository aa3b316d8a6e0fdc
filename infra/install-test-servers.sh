#!/usr/bin/env bash
# What the tests need and no Python package ships: PostgreSQL, Chromium for the page, promtool for the alerts.
# On Debian or Ubuntu, as root. Elsewhere install them your own way; tests that miss one say so and are skipped.
set -euo pipefail
missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || missing+=(chromium)
command -v chromedriver >/dev/null || missing+=(chromium-driver)
has_promtool=$(command -v promtool || true)
[ ${#missing[@]} -gt 0 ] || [ -z "$has_promtool" ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "install-test-servers: missing ${missing[*]} $([ -n "$has_promtool" ] || echo promtool); install them, or their tests are skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
[ ${#missing[@]} = 0 ] || apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
if [ -z "$has_promtool" ]; then
    # Its package would start a Prometheus server as well: only the tool is taken out of it.
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    chmod 755 "$folder"
    if (cd "$folder" && apt-get download -qq prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >promtool); then
        install -m 755 "$folder/promtool" /usr/local/bin/promtool
    else
        echo "install-test-servers: no promtool to be had; the alerts' own tests are skipped" >&2
    fi
fi
