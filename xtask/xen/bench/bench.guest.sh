# The same jobs on both disks, one after the other, round after round. Each run waits until dom0 has
# looked at its clock, and ends with: job, disk, requests a second, KiB a second, requests.
disk_present xvda && disk_present xvdb || exit 1
dmesg | grep blkfront

# Of terse output, fields 6 to 8 are reads: KiB, KiB a second, requests a second; 47 to 49 writes.
# job NAME PATTERN BLOCK_KIB DEPTH DISK
job() {
  within 60 xenstore-read data/to-guest/go-$run || return 1
  fio --name=run --filename=/dev/$5 --size=64m --rw=$2 --bs=$3k --iodepth=$4 --ioengine=libaio \
    --direct=1 --time_based --runtime=$SECONDS_EACH --norandommap --randrepeat=0 --thread --minimal >/tmp/run.out 2>&1 ||
    { cat /tmp/run.out; return 1; }
  xenstore-write data/from-guest-end-$run \
    "$1 $5 $(awk -F';' -v block=$3 'NF > 8 { print $8 + $49, $7 + $48, ($6 + $47) / block }' /tmp/run.out)"
  run=$((run + 1))
}

run=1
round=1
tell ready
while [ $round -le $ROUNDS ]; do
  for disk in xvda xvdb; do job 4k-qd32 randread 4 32 $disk || exit 1; done
  for disk in xvda xvdb; do job 4k-qd1 randread 4 1 $disk || exit 1; done
  for disk in xvda xvdb; do job w4k-qd32 randwrite 4 32 $disk || exit 1; done
  for disk in xvda xvdb; do job 128k-qd8 read 128 8 $disk || exit 1; done
  for disk in xvda xvdb; do job w128k-qd8 write 128 8 $disk || exit 1; done
  for disk in xvda xvdb; do job 1m-qd4 read 1024 4 $disk || exit 1; done
  round=$((round + 1))
done
within 60 xenstore-read data/to-guest/end
