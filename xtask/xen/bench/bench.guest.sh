# The same jobs on both disks, one after the other, round after round. Each run waits until dom0 has
# looked at its clock, and ends with: job, disk, requests a second, KiB a second, requests.
disk_present xvda && disk_present xvdb || exit 1
dmesg | grep blkfront

# Of terse output, fields 6 to 8 are reads: KiB, KiB a second, requests a second; 47 to 49 writes.
# job PATTERN:KIB:DEPTH DISK
job() {
  local name=$1 disk=$2 pattern kib depth
  IFS=: read -r pattern kib depth <<END
$1
END
  within 60 xenstore-read data/to-guest/go-$run || return 1
  fio --name=run --filename=/dev/$disk --size=64m --rw=$pattern --bs=${kib}k --iodepth=$depth --ioengine=libaio \
    --direct=1 --time_based --runtime=$SECONDS_EACH --norandommap --randrepeat=0 --thread --minimal >/tmp/run.out 2>&1 ||
    { cat /tmp/run.out; return 1; }
  xenstore-write data/from-guest-end-$run \
    "$name $disk $(awk -F';' -v kib=$kib 'NF > 8 { print $8 + $49, $7 + $48, ($6 + $47) / kib }' /tmp/run.out)"
  run=$((run + 1))
}

run=1
round=1
tell ready
while [ $round -le $ROUNDS ]; do
  for job in $JOBS; do
    for disk in xvda xvdb; do job $job $disk || exit 1; done
  done
  round=$((round + 1))
done
within 60 xenstore-read data/to-guest/end
