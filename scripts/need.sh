#!/bin/bash
# Installs what running or testing Postbook needs, where it can: on Debian and its
# kin, as root or with sudo. Elsewhere it says what is missing.
set -euo pipefail

what=${1:?"run or test"}
missing=()
packages=()

need() { # name, test, Debian packages
	if ! eval "$2" >/dev/null 2>&1; then
		missing+=("$1")
		packages+=($3)
	fi
}

need "PostgreSQL server 14 or later" 'ls /usr/lib/postgresql/*/bin/postgres || command -v postgres' postgresql
if [ "$what" = test ]; then
	PATH=$PATH:/usr/sbin
	need "Knot DNS" 'command -v knotd' knot
	need "Postfix" 'command -v postfix' postfix
	need "OpenDKIM's tools" 'command -v opendkim' "opendkim opendkim-tools"
	need "Chromium" 'command -v chromium || command -v chromium-browser || command -v google-chrome' chromium
fi

version=$(go env GOVERSION 2>/dev/null || true)
if ! [[ $version =~ ^go1\.(2[6-9]|[3-9][0-9]) ]]; then
	echo "Go 1.26 or later is needed (found: ${version:-none})." >&2
	exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

joined=$(printf ', %s' "${missing[@]}")
as=""
if [ "$(id -u)" != 0 ]; then
	if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as="sudo -n"; else as="no"; fi
fi
if ! command -v apt-get >/dev/null || [ "$as" = no ]; then
	echo "Missing: ${joined:2}. Install them; on Debian: apt-get install ${packages[*]}" >&2
	exit 1
fi

echo "Installing ${joined:2} …"
# None of these is to start a service of its own: Postbook and its tests do.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	printf '#!/bin/sh\nexit 101\n' | $as tee /usr/sbin/policy-rc.d >/dev/null
	$as chmod 755 /usr/sbin/policy-rc.d
	trap '$as rm -f /usr/sbin/policy-rc.d' EXIT
fi
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
	$as mkdir -p /etc/postgresql-common
	echo "create_main_cluster = false" | $as tee /etc/postgresql-common/createcluster.conf >/dev/null
fi
if command -v debconf-set-selections >/dev/null; then
	echo "postfix postfix/main_mailer_type select No configuration" | $as debconf-set-selections
fi
install() { $as env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -qq "${packages[@]}"; }
install >/dev/null 2>&1 || { $as apt-get update -qq && install; }
