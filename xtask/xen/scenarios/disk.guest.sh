# Every byte that is written comes back.
disk_present xvda || exit 1
dmesg | grep blkfront
step "random writes of 512 B to 64 KiB at depth 32, verified"
verify xvda 8M || exit 1
tell done
await shown >/dev/null
