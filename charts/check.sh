#!/bin/sh
# Checks the charts without a cluster. Usage: charts/check.sh [HELM]
# Helm is built by `cargo run -p pointsman-e2e --bin e2e-tools` into target/e2e/bin.
set -eu
cd "$(dirname "$0")"
helm=${1:-../target/e2e/bin/helm}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "charts/check.sh: $*" >&2
    exit 1
}

[ -x "$helm" ] || command -v "$helm" >/dev/null || fail "no helm at $helm: give its path as the first argument"

# The CRDs of the chart are the generated ones, and Helm passes them on unchanged but for labels and annotations.
diff -r ../crds/yaml pointsman-crds/files ||
    fail "charts/pointsman-crds/files differs from crds/yaml: run make generate (or cp crds/yaml/* charts/pointsman-crds/files/)"

"$helm" lint --strict --quiet pointsman-crds pointsman
for values in pointsman/ci/*-values.yaml; do
    "$helm" lint --strict --quiet --values "$values" pointsman
done

# Every set of values gives objects.
render() { "$helm" template pointsman "$1" --namespace pointsman-system --kube-version 1.36.0 --values "$2"; }
render pointsman-crds /dev/null >"$work/crds.yaml"
render pointsman /dev/null >"$work/default.yaml"
for values in pointsman/ci/*-values.yaml; do
    render pointsman "$values" >"$work/$(basename "$values")"
done
kinds() { grep -c '^kind:' "$1"; }
expect() { [ "$2" = "$3" ] || fail "$1: expected $2, found $3"; }
expect "CRDs" 2 "$(kinds "$work/crds.yaml")"
expect "objects by default" 12 "$(kinds "$work/default.yaml")"
expect "objects with everything" 13 "$(kinds "$work/everything-values.yaml")"
expect "objects with nothing" 2 "$(kinds "$work/nothing-values.yaml")"
grep -q 'helm.sh/resource-policy: keep' "$work/crds.yaml" || fail "the CRDs do not outlive the chart"
for file in default everything-values; do
    ! grep -q 'privileged: true' "$work/$file.yaml" || fail "privileged without being asked to ($file)"
done

# Values that make no sense are refused, and what is refused is named.
refused() {
    if said=$("$helm" template pointsman pointsman --set "$1" 2>&1); then
        fail "--set $1 is accepted"
    fi
    case $said in
    *"$2"*) ;;
    *) fail "--set $1 is refused without naming $2: $said" ;;
    esac
}
refused agent.hostnetwork=true hostnetwork
refused image.tag=latest tag
refused image.digest=sha256:12 digest
refused operator.replicas=-1 replicas
refused operator.port=80 port
refused agent.stateDir=relative stateDir
refused agent.stateDir=/a/../etc stateDir
refused 'agent.capabilities={NET_RAW}' capabilities
refused agent.maxUnavailable=0 maxUnavailable
refused defaultPolicy.name=Upper name
refused 'commonLabels.app\.kubernetes\.io/name=x' app.kubernetes.io/name

echo "charts: ok"
