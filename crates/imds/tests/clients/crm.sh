#!/bin/sh
# Stands in for Pacemaker's commands: attributes are files in $CLUSTER, nothing is pending, every node is known.
case "${0##*/}" in
crm_node)
    printf '1 node-a member\n2 node-b member\n'
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
    case "$do" in
    update) printf '%s' "$value" >"$CLUSTER/$node.$name" ;;
    delete) rm -f "$CLUSTER/$node.$name" ;;
    query) cat "$CLUSTER/$node.$name" 2>/dev/null || true ;;
    esac
    ;;
esac
