#!/usr/bin/env bash
# A real Slurm of one node on the loopback interface, for tests:
#   single-node-slurm.sh start DIR     starts it and prints the SLURM_CONF to use
#   single-node-slurm.sh stop DIR      ends it
# Everything it has (configuration, keys, sockets, logs) is in DIR, and its ports are free ones: a Slurm that the machine runs
# already is not touched. Jobs in the partition "urgent" preempt those in "main", which go back into the queue.
# It needs sbatch, slurmctld, slurmd and munged (Debian: slurm-wlm, munge) and installs nothing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
action=${1:?start or stop} dir=$(realpath -m "${2:?directory}")

free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

start() {
    local user host
    user=$(id -un) host=$(hostname -s)
    mkdir -p "$dir/state" "$dir/spool"
    head -c 128 /dev/urandom >"$dir/munge.key"
    chmod 600 "$dir/munge.key"
    # cred_expire: a requeued job may start again after this time; munge's own 300 s would be two minutes of waiting.
    cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES PriorityTier=1 GraceTime=0
PartitionName=urgent Nodes=$host PriorityTier=2 PreemptMode=OFF
CONF
    export SLURM_CONF=$dir/slurm.conf
    # --force: munged minds that a private folder hides its socket from other users, which is what is wanted here.
    munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
        --seed-file="$dir/munged.seed" --log-file="$dir/munged.log" 2>"$dir/munged.err"
    slurmctld && slurmd
    for _ in $(seq 150); do
        [[ $(sinfo --noheader --partition=main --format=%T 2>/dev/null) == idle ]] && { echo "$SLURM_CONF"; return; }
        sleep 0.1
    done
    echo "Slurm did not start; the logs are in $dir" >&2
    stop
    return 1
}

stop() {
    local pidfile
    export SLURM_CONF=$dir/slurm.conf
    scancel --user="$(id -u)" 2>/dev/null || true
    for _ in $(seq 100); do  # the processes of a job outlive slurmd
        [[ $(squeue --noheader 2>/dev/null) ]] || break
        sleep 0.1
    done
    for pidfile in "$dir"/{slurmd,slurmctld,munged}.pid; do
        [[ -f $pidfile ]] && kill -KILL "$(<"$pidfile")" 2>/dev/null || true  # they have nothing to save
    done
}

case $action in
start | stop) "$action" ;;
*) echo "usage: $0 start|stop DIR" >&2; exit 2 ;;
esac
