#!/bin/bash
# Stands in for Pacemaker's commands: nothing is pending, every node is known. The cluster's attributes are files in $CLUSTER, or, on
# a real node, with another machine, which /etc/cluster names (`store=ADDRESS`).
case "${0##*/}" in
crm_node)
    case "$1" in
    -n | --name) uname -n ;;
    *) printf '1 node-a member\n2 node-b member\n' ;;
    esac
    ;;
crm_simulate)
    printf 'Current cluster status:\n\nTransition Summary:\n'
    ;;
crm_resource)
    ;;
crm_attribute)
    name= node=cluster do=query value=
    while [ $# -gt 0 ]; do
        case "$1" in
        --name | -n) name=$2; shift ;;
        --node | -N) node=$2; shift ;;
        --update | -v) do=update value=$2; shift ;;
        --delete) do=delete ;;
        --type | -t | --default) shift ;;
        esac
        shift
    done
    if [ -z "${CLUSTER:-}" ]; then
        . /etc/cluster
        # As Pacemaker's own commands wait for the cluster; its way there comes back later than a node does.
        until (exec 3<>"/dev/tcp/$store/7000") 2>/dev/null; do sleep 1; done
        exec 3<>"/dev/tcp/$store/7000"
        printf '%s %s %s %s %s\n' "$(uname -n)" "$do" "$node" "$name" "$value" >&3
        cat <&3
        exit
    fi
    case "$do" in
    update) printf '%s' "$value" >"$CLUSTER/$node.$name" ;;
    delete) rm -f "$CLUSTER/$node.$name" ;;
    query) cat "$CLUSTER/$node.$name" 2>/dev/null || true ;;
    esac
    ;;
esac
