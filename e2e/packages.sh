#!/bin/sh
# Installs the Debian packages that the e2e harness runs programs of, those that are missing only.
# Safe to run any number of times; needs root when something is missing.
set -eu

# package: what the harness needs it for
#   iproute2   ip: links, addresses and routes of the namespaces
#   iptables   kube-proxy's iptables mode and ours, both variants (legacy, nf_tables)
#   nftables   nft: kube-proxy's nftables mode, cutting a node off, reading rules back
#   conntrack  looking at and clearing connections from tests
#   ipvsadm    looking at virtual services, and writing foreign ones
#   ipset      kube-proxy's ipvs mode
#   linux-source-6.12 xz-utils   the test kernel's sources
#   make gcc libc6-dev flex bison bc libelf-dev perl   building it
packages="iproute2 iptables nftables conntrack ipvsadm ipset linux-source-6.12 xz-utils make gcc libc6-dev flex bison bc libelf-dev perl"

missing=""
for package in $packages; do
    # A removed package that left its configuration behind is known to dpkg, but not installed.
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || status=unknown
    [ "$status" = installed ] || missing="$missing $package"
done

if [ -z "$missing" ]; then
    exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
    echo "e2e/packages.sh: missing:$missing. Run it as root: sudo e2e/packages.sh" >&2
    exit 1
fi

echo "e2e/packages.sh: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # a list of words
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "e2e/packages.sh: apt-get failed (above): look at the network and /etc/apt/sources.list" >&2
    exit 1
fi
