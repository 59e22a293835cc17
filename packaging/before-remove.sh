#!/bin/sh
# Before the last version's files go. Workers that still serve a guest go on until it stops.
set -e
case "$1" in upgrade | 1) exit 0 ;; esac
scripts=/usr/libexec/xapi-storage-script
if [ -d "$scripts" ]; then
  /usr/libexec/zerotap/zerotap smapi remove --root "$scripts"
fi
if [ -d /run/systemd/system ]; then
  systemctl disable --now zerotap.service
fi
exit 0
