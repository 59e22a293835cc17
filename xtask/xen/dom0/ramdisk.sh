# RAM disks: what disks and storage repositories lie on. Real block devices, so O_DIRECT is real.

# ramdisks SIZE: makes /dev/ram0 to ram3, once. All have the size of the first request, and no memory
# behind them until it is written.
ramdisks() { [ -b /dev/ram0 ] || insmod /mod/brd.ko rd_nr=4 rd_size=$(kibibytes "$1"); }

# kibibytes 64M: that size as a number.
kibibytes() {
  case $1 in
    *G) echo $((${1%G} * 1048576)) ;;
    *M) echo $((${1%M} * 1024)) ;;
    *K) echo "${1%K}" ;;
    *) echo $(($1 / 1024)) ;;
  esac
}
