# The first process of a pretended machine, inside its namespaces: sets them up, runs the
# command, and collects orphans as an init process must. Killing it ends the machine.
# Arguments: NAME ADDRESS FOLDER HOSTS COMMAND...
set -eu
name=$1 address=$2 folder=$3 hosts=$4
shift 4
hostname "$name"
mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm
mount --bind "$folder" /tmp/ray # Ray's sessions: the disk of this machine alone
mount --bind "$hosts" /etc/hosts
if [ "$address" != none ]; then
  until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done # plugged in from outside
  echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
  ip link set lo up
  ip address add "$address/24" dev eth0
  ip link set eth0 up
fi
"$@" &
wait $!
