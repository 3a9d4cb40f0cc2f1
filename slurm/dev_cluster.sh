#!/bin/bash
# A real Slurm with several virtual nodes on this one machine, on 127.0.0.1 only, to try metapt without a cluster and to
# run tests/slurm. Needs Debian or Ubuntu, and root; installs munge, slurmctld, slurmd and slurm-client.
#
#   slurm/dev_cluster.sh start  [DIR]   (re)start it, with state and logs in DIR (default: /tmp/metapt-slurm)
#   slurm/dev_cluster.sh stop   [DIR]   cancel its jobs and stop it; configuration and logs stay in DIR
#   slurm/dev_cluster.sh status [DIR]   show nodes and jobs; exit code 3 if it does not run
#   . DIR/env.sh                        make sbatch, squeue and `metapt submit cluster=slurm` use it
#
# Environment: NODES (2), CPUS per node (2), GPUS per node, simulated (2; 0: none), PORT, the first of NODES + 1 ports
# (16817), MAX_ARRAY_SIZE (1001, Slurm's default), ACCOUNTING (0; 1: with slurmdbd on MariaDB, at port PORT + NODES + 1,
# so that sacctmgr can set limits of users, and there is sacct).
# Partitions: main, and low, whose jobs are preempted and requeued for jobs of main.
set -u
COMMAND=${1:-} DIR=$(realpath -m "${2:-/tmp/metapt-slurm}")
NODES=${NODES:-2} CPUS=${CPUS:-2} GPUS=${GPUS:-2} PORT=${PORT:-16817}
MAX_ARRAY_SIZE=${MAX_ARRAY_SIZE:-1001} ACCOUNTING=${ACCOUNTING:-0}
MARK="# metapt slurm in <$DIR>"
unset "${!SLURM_@}" "${!SBATCH_@}" "${!SRUN_@}" # variables of another cluster or job
export SLURM_CONF=$DIR/etc/slurm.conf

fail() { echo "dev_cluster: $*" >&2; exit 1; }

# ---- daemons, identified by pid and start time, so that a reused pid is never signalled ---------------------
start_time() { # PID: field 22 of its stat; field 2, its name, may have spaces. Fails for a zombie
    local stat fields; stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    read -ra fields <<<"${stat##*) }"
    [ "${fields[0]}" != Z ] && echo "${fields[19]}"
}
alive() { # NAME
    local pid started; read -r pid started 2>/dev/null <"$DIR/pids/$1" && [ "$(start_time "$pid")" = "$started" ]
}
start_daemon() { # NAME COMMAND...    (in the foreground)
    local name=$1; shift
    setsid "$@" >"$DIR/log/$name.out" 2>&1 </dev/null &
    echo "$! $(start_time $!)" >"$DIR/pids/$name"
}
stop_daemon() { # NAME: TERM, after ten seconds KILL
    local pid; alive "$1" || return 0
    read -r pid _ <"$DIR/pids/$1"
    kill -TERM "$pid"
    for _ in $(seq 100); do alive "$1" || return 0; sleep 0.1; done
    kill -KILL "$pid"
}
wait_until() { # SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2; shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            tail -n 20 "$DIR"/log/* >&2
            stop; fail "$what: not ready in time"
        fi
        sleep 0.2
    done
}

# ---- start -------------------------------------------------------------------------------------------------
install_packages() {
    local need=() pair is_new
    local commands=(munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client)
    [ "$ACCOUNTING" = 1 ] && commands+=(slurmdbd:slurmdbd mariadbd:mariadb-server-core my_print_defaults:mariadb-client-core)
    for pair in "${commands[@]}"; do
        command -v "${pair%%:*}" >/dev/null || need+=("${pair#*:}")
    done
    [ ${#need[@]} = 0 ] && return
    echo "dev_cluster: installing ${need[*]}"
    if [ ! -e /usr/sbin/policy-rc.d ]; then # otherwise the packages start their own daemons
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d && is_new=1
    fi
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}"; } \
        >"$DIR/log/apt.out" 2>&1
    local code=$?
    [ -n "${is_new:-}" ] && rm -f /usr/sbin/policy-rc.d
    [ $code = 0 ] || { tail -20 "$DIR/log/apt.out" >&2; fail "apt-get failed"; }
}
write_configuration() {
    local host gres='' number accounting=''; host=$(hostname -s)
    # for connections to slurmdbd "Pass", and not AuthInfo, names the socket of munge
    [ "$ACCOUNTING" = 1 ] && accounting="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + NODES + 1))
AccountingStoragePass=$DIR/munge/munge.sock
AccountingStorageEnforce=limits"
    if [ "$GPUS" -gt 0 ]; then
        for number in $(seq 0 $((GPUS - 1))); do mknod "$DIR/dev/gpu$number" c 1 3 || fail "mknod (try GPUS=0)"; done
        echo "NodeName=node[1-$NODES] Name=gpu File=$DIR/dev/gpu[0-$((GPUS - 1))]" >"$DIR/etc/gres.conf"
        gres="Gres=gpu:$GPUS"
    fi
    # slurmd always loads a cgroup plugin; v1 does nothing unless it is used
    echo "CgroupPlugin=cgroup/v1" >"$DIR/etc/cgroup.conf"
    echo "export SLURM_CONF=$SLURM_CONF" >"$DIR/env.sh"
    # cred_expire: seconds that a requeued job waits. FirstJobId: job ids differ from those of an earlier cluster
    cat >"$SLURM_CONF" <<CONF
ClusterName=metapt
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.sock,cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
MaxArraySize=$MAX_ARRAY_SIZE
FirstJobId=$((($(date +%s) - 1700000000) % 60000000 + 1))
JobRequeue=1
EnforcePartLimits=ALL
${gres:+GresTypes=gpu}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=256
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
$accounting
NodeName=node[1-$NODES] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((PORT + 1))-$((PORT + NODES))] CPUs=$CPUS RealMemory=4096 $gres
PartitionName=main Nodes=ALL Default=YES DefaultTime=5 PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=ALL DefaultTime=5 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
CONF
}
make_names_resolve() { # MASTER_ADDR is the first node's name. /etc/hosts may be a bind mount: only append
    local number
    for number in $(seq "$NODES"); do echo "127.0.0.1 node$number $MARK"; done >>/etc/hosts
    getent hosts "$(hostname -s)" >/dev/null || echo "127.0.0.1 $(hostname -s) $MARK" >>/etc/hosts
    # for programs that drop SLURM_CONF from the environment
    if [ ! -e /etc/slurm/slurm.conf ]; then
        mkdir -p /etc/slurm && ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
    fi
}
refuse_taken_ports() { # the daemons of another cluster would answer instead
    local port
    for port in $(seq "$PORT" $((PORT + NODES + ACCOUNTING))); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && fail "port $port is in use; set PORT"
    done
}
start_accounting() { # root over the socket of the database: no password anywhere
    local options=(--no-defaults --user=root --datadir="$DIR/db")
    mkdir "$DIR/db"
    mariadb-install-db "${options[@]}" --auth-root-authentication-method=socket --auth-root-socket-user=root \
        --skip-test-db --skip-name-resolve >"$DIR/log/mariadb-install.out" 2>&1 || fail "mariadb-install-db failed"
    start_daemon mariadbd mariadbd "${options[@]}" --skip-networking --socket="$DIR/run/db.sock" --pid-file="$DIR/run/db.pid" \
        --innodb-buffer-pool-size=64M --innodb-log-file-size=32M --innodb-lock-wait-timeout=900 \
        --innodb-flush-log-at-trx-commit=0 --skip-log-bin --performance-schema=off
    wait_until 60 mariadbd test -S "$DIR/run/db.sock"
    cat >"$DIR/etc/slurmdbd.conf" <<CONF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + NODES + 1))
CommunicationParameters=NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.sock
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_accounting
CONF
    chmod 600 "$DIR/etc/slurmdbd.conf" # slurmdbd requires it
    MYSQL_UNIX_PORT=$DIR/run/db.sock start_daemon slurmdbd slurmdbd -D
    wait_until 60 slurmdbd sacctmgr --noheader list cluster
    { sacctmgr -i add cluster metapt && sacctmgr -i add account metapt && sacctmgr -i add user root account=metapt; } \
        >"$DIR/log/sacctmgr.out" 2>&1 || fail "sacctmgr failed, see $DIR/log/sacctmgr.out"
}
nodes_idle() { [ "$(sinfo -h -N -p main -t idle -o %N | wc -l)" = "$NODES" ]; }
start() {
    [ "$(id -u)" = 0 ] || fail "run it as root"
    [ ${#DIR} -le 70 ] || fail "$DIR is too long for a socket path"
    [ -e "$DIR/slurm.conf.is.here" ] || [ -z "$(ls -A "$DIR" 2>/dev/null)" ] || fail "$DIR is not empty, and not the folder of a development cluster"
    stop
    refuse_taken_ports
    (cd "$DIR" 2>/dev/null && rm -rf etc log run pids state spool munge dev db)
    mkdir -p "$DIR"/{etc,log,run,pids,state,spool,munge,dev} && touch "$DIR/slurm.conf.is.here"
    chmod 755 "$DIR" "$DIR/munge" && chmod 700 "$DIR/state"
    install_packages
    write_configuration
    make_names_resolve
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge/munge.key")
    start_daemon munged munged -F --key-file="$DIR/munge/munge.key" --socket="$DIR/munge/munge.sock" \
        --pid-file="$DIR/munge/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/munged.seed"
    wait_until 15 munged munge -n -S "$DIR/munge/munge.sock"
    [ "$ACCOUNTING" = 0 ] || start_accounting
    start_daemon slurmctld slurmctld -D -c
    wait_until 30 slurmctld scontrol ping
    local number
    for number in $(seq "$NODES"); do
        mkdir -p "$DIR/spool/node$number"
        start_daemon "slurmd-node$number" slurmd -D -N "node$number"
    done
    wait_until 60 "idle nodes" nodes_idle
    sinfo
    echo "dev_cluster: ready; use it with  . $DIR/env.sh  and stop it with  $0 stop $DIR"
}

# ---- stop and status ----------------------------------------------------------------------------------------
runs() { alive slurmctld && alive munged; }
end_jobs() { # through Slurm
    local jobs; mapfile -t jobs < <(timeout 10 squeue -h -a -o %A | sort -u)
    [ ${#jobs[@]} = 0 ] || timeout 10 scancel "${jobs[@]}"
    for _ in $(seq 100); do
        [ -z "$(timeout 10 squeue -h -a -t running,completing -o %A)" ] && break
        sleep 0.2
    done
}
stop() {
    [ -d "$DIR/pids" ] || return 0
    local file hosts
    runs && end_jobs
    for file in "$DIR"/pids/slurmd-*; do stop_daemon "${file##*/}"; done
    stop_daemon slurmctld
    stop_daemon slurmdbd
    stop_daemon mariadbd
    stop_daemon munged
    [ "$(readlink /etc/slurm/slurm.conf)" = "$SLURM_CONF" ] && rm -f /etc/slurm/slurm.conf
    if grep -qF "$MARK" /etc/hosts; then
        hosts=$(grep -vF "$MARK" /etc/hosts); printf '%s\n' "$hosts" >/etc/hosts
    fi
    rm -rf "$DIR/pids"
}
status() {
    runs || { echo "dev_cluster: no cluster runs in $DIR"; exit 3; }
    sinfo && echo && squeue
}

case $COMMAND in
    start) start ;;
    stop) stop && echo "dev_cluster: the cluster in $DIR is stopped" ;;
    status) status ;;
    *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
