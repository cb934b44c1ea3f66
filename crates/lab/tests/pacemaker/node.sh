#!/bin/sh
# A cluster's node: the resource agent $1 is asked by its `monitor` every few seconds, as Pacemaker does (its default: 10 s).
set -u
export OCF_ROOT=/usr/lib/ocf OCF_RESKEY_eventTypes=Freeze OCF_RESOURCE_INSTANCE=test PATH=/opt/cluster:/usr/sbin:/usr/bin:/sbin:/bin
while :; do
    /usr/lib/ocf/resource.d/heartbeat/"$1" monitor
    echo "monitor: $?"
    sleep 5
done
