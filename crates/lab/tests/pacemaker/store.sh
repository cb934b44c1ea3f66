#!/bin/sh
# The cluster's attributes, as files; one question per connection: ASKER query|update|delete NODE NAME VALUE.
# What is changed is told in /root/cluster.log, with the time.
mkdir -p /root/cluster
read -r asker does node name value || exit 0
case "$does" in
update)
    printf '%s' "$value" >"/root/cluster/$node.$name"
    echo "$(date +%s) $asker $node $name $value" >>/root/cluster.log
    ;;
delete)
    rm -f "/root/cluster/$node.$name"
    echo "$(date +%s) $asker $node $name -" >>/root/cluster.log
    ;;
query)
    [ ! -f "/root/cluster/$node.$name" ] || cat "/root/cluster/$node.$name"
    ;;
esac
