#!/usr/bin/env bash
# Hosts on one machine, each with a name, an address, an sshd and a process list of its own.
#   hosts.sh up N     node1..nodeN at 10.77.0.1..N       (root, openssh-server, iproute2)
#   hosts.sh cut X    take node X off the network        hosts.sh mend X    bring it back
#   hosts.sh kill X   end every process of node X        hosts.sh serve X   let it serve again
#   hosts.sh down     remove all                         serve X KB: no process has more memory
# LAB (a folder) keeps keys and, in LAB/bin, an ssh that knows the hosts: put it first in PATH.
# Nothing outside of LAB is written but marked lines of /etc/hosts, which `down` takes out again.
set -euo pipefail
bridge=arlab0 net=10.77.0 mark="# anyrank test hosts" lab=${LAB:?}

up() {
  mkdir -p "$lab/bin" /run/sshd
  ssh-keygen -q -t ed25519 -N '' -f "$lab/hostkey" <<< y > /dev/null
  ssh-keygen -q -t ed25519 -N '' -f "$lab/userkey" <<< y > /dev/null
  cp "$lab/userkey.pub" "$lab/authorized_keys"
  echo "node* $(cut -d' ' -f1,2 "$lab/hostkey.pub")" > "$lab/known_hosts"
  printf '%s\n' "Host node*" "  IdentityFile $lab/userkey" "  IdentitiesOnly yes" \
    "  UserKnownHostsFile $lab/known_hosts" "  User root" > "$lab/ssh_config"
  printf '#!/bin/sh\nexec %s -F %s "$@"\n' "$(type -P ssh)" "$lab/ssh_config" > "$lab/bin/ssh"
  chmod +x "$lab/bin/ssh"
  ip link add "$bridge" type bridge
  ip addr add "$net.254/24" dev "$bridge"
  ip link set "$bridge" up
  for i in $(seq 1 "$1"); do
    ip netns add "node$i"
    ip link add "arlab$i" type veth peer name eth0 netns "node$i"
    ip link set "arlab$i" master "$bridge" up
    ip -n "node$i" addr add "$net.$i/24" dev eth0
    ip -n "node$i" link set eth0 up
    ip -n "node$i" link set lo up
    echo "$net.$i node$i $mark" >> /etc/hosts
    serve "$i"
  done
}

serve() {
  local own='hostname "$1"; ulimit -d "$2"; shift 2; exec "$@"'
  ip netns exec "node$1" unshare --uts bash -c "$own" _ "node$1" "${2:-unlimited}" \
    /usr/sbin/sshd -f /dev/null -h "$lab/hostkey" \
    -o ListenAddress="$net.$1" -o AuthorizedKeysFile="$lab/authorized_keys" -o StrictModes=no \
    -o PermitRootLogin=yes -o UsePAM=no -o MaxStartups=200 -o PidFile=none
}

kill_node() { ip netns pids "node$1" | xargs -r kill -9 2> /dev/null || true; }

down() {
  for name in $(ip netns list | awk '/^node[0-9]+/{print $1}'); do
    kill_node "${name#node}"
    ip netns del "$name"
  done
  ip link del "$bridge" 2> /dev/null || true
  grep -qF "$mark" /etc/hosts && { grep -vF "$mark" /etc/hosts > "$lab/etc-hosts" || true
    cat "$lab/etc-hosts" > /etc/hosts; }
  rm -rf "$lab/bin" "$lab"/*key* "$lab"/known_hosts "$lab"/ssh_config "$lab/etc-hosts"
}

case ${1:-} in
  up) up "${2:?how many}" ;;
  cut) ip link set "arlab${2:?which}" down ;;
  mend) ip link set "arlab${2:?which}" up ;;
  kill) kill_node "${2:?which}" ;;
  serve) serve "${2:?which}" "${3:-unlimited}" ;;
  down) down ;;
  *) sed -n '2,8p' "$0"; exit 2 ;;
esac
