# 20 s of verified random I/O.
disk_present xvda || exit 1
tell busy
fio --name=demo --filename=/dev/xvda --size=256M --rw=randrw --bsrange=512-64k --direct=1 --ioengine=libaio \
  --iodepth=32 --verify=crc32c --verify_fatal=1 --time_based --runtime=20 --minimal >/tmp/fio.out 2>&1 ||
  { cat /tmp/fio.out; exit 1; }
