#!/usr/bin/env bash
# Run a command with QUAD_TEST_S3_ENDPOINT and AWS credentials set to a Ceph object gateway of its own: one monitor, one
# manager, one object store in memory and one gateway on loopback, all ended with the command.
set -euo pipefail
for program in ceph-mon ceph-osd ceph-mgr radosgw radosgw-admin ceph-authtool; do
    command -v "$program" > /dev/null || {
        echo "expected $program, found none: apt-get install ceph-mon ceph-osd ceph-mgr ceph-common radosgw" >&2
        exit 2
    }
done
MON_PORT=${QUAD_CEPH_MON_PORT:-13300}
GATEWAY_PORT=${QUAD_CEPH_GATEWAY_PORT:-17480}
DIR=$(mktemp -d -t quad-ceph-XXXXXX)
PIDS=()
finish() {
    kill "${PIDS[@]}" 2> /dev/null || true
    wait "${PIDS[@]}" 2> /dev/null || true
    rm -rf "$DIR"
}
trap finish EXIT
mkdir "$DIR"/{mon,osd,mgr,run,gateway}
ID=$(cat /proc/sys/kernel/random/uuid)
cat > "$DIR/ceph.conf" << EOF
[global]
fsid = $ID
mon host = [v2:127.0.0.1:$MON_PORT]
public addr = 127.0.0.1
ms bind ipv6 = false
keyring = $DIR/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
mon data = $DIR/mon
osd data = $DIR/osd
mgr data = $DIR/mgr
rgw data = $DIR/gateway
rgw frontends = beast endpoint=127.0.0.1:$GATEWAY_PORT
log file = $DIR/\$name.log
admin socket = $DIR/run/\$name.asok
pid file = $DIR/run/\$name.pid
run dir = $DIR/run
EOF
export CEPH_CONF=$DIR/ceph.conf
start() { # in the foreground of a job of ours, so that it can be ended by id
    "$@" -c "$CEPH_CONF" -f > "$DIR/out.log" 2>&1 &
    PIDS+=($!)
}
{
    ceph-authtool --create-keyring "$DIR/keyring" --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool "$DIR/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    monmaptool --create --fsid "$ID" --addv a "[v2:127.0.0.1:$MON_PORT]" "$DIR/monmap"
    ceph-mon --mkfs -i a --monmap "$DIR/monmap" --keyring "$DIR/keyring"
    start ceph-mon -i a
    timeout 60 ceph -s
    OSD_UUID=$(cat /proc/sys/kernel/random/uuid)
    OSD=$(timeout 60 ceph osd new "$OSD_UUID")
    ceph auth get-or-create "osd.$OSD" mon 'allow profile osd' osd 'allow *' >> "$DIR/keyring"
    ceph auth get-or-create mgr.x mon 'allow *' osd 'allow *' >> "$DIR/keyring"
    ceph auth get-or-create client.gateway mon 'allow rw' osd 'allow rwx' >> "$DIR/keyring"
    ceph-osd -i "$OSD" --mkfs --osd-uuid "$OSD_UUID"
    start ceph-osd -i "$OSD"
    start ceph-mgr -i x
    start radosgw -n client.gateway
    for _ in $(seq 60); do curl -s -o "$DIR/answer" "http://127.0.0.1:$GATEWAY_PORT" && break; sleep 1; done
    SECRET=$(head -c 24 /dev/urandom | base64 | tr -dc a-zA-Z0-9)
    timeout 60 radosgw-admin user create --uid=quad --display-name=quad --access-key=quad --secret-key="$SECRET"
} > "$DIR/setup.log" 2>&1 || {
    cat "$DIR/setup.log" >&2
    exit 1
}
export QUAD_TEST_S3_ENDPOINT=http://127.0.0.1:$GATEWAY_PORT
export AWS_ACCESS_KEY_ID=quad AWS_SECRET_ACCESS_KEY=$SECRET AWS_DEFAULT_REGION=us-east-1
"$@"
