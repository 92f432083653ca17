{{/* The files of the chart's own Valkey. deploy/redis/redis.conf has the reasons. */}}
{{- define "stepfleet.valkeyConfig" -}}
valkey.conf: |
  bind * -::*
  port 6379
  dir /data
  aclfile /run/valkey/users.acl
  maxmemory {{ .Values.valkey.maxmemory }}
  maxmemory-policy noeviction
  appendonly yes
  appendfsync everysec
  save ""
  auto-aof-rewrite-percentage 100
  auto-aof-rewrite-min-size 64mb
  hash-max-listpack-entries 512
  hash-max-listpack-value 64
  stream-node-max-entries 100
  lazyfree-lazy-user-del yes
  lazyfree-lazy-expire yes
  client-output-buffer-limit pubsub 32mb 8mb 60
  tcp-keepalive 60
# Users without passwords, as in deploy/redis/users.acl.
users.acl: |
  {{- .Files.Get "files/users.acl" | replace "sf:" .Values.redis.prefix | trim | nindent 2 }}
# Gives each user its password and becomes the server.
start.sh: |
  set -eu
  umask 077
  # By the shell's own printf: an argument of a program could be read by others.
  printf 's/^user %s on /&>%s /\n' coordinator "$COORDINATOR_PASSWORD" worker "$WORKER_PASSWORD" \
    keda "$KEDA_PASSWORD" viewer "$VIEWER_PASSWORD" |
    sed -f - /etc/valkey/users.acl >/run/valkey/users.acl
  unset COORDINATOR_PASSWORD WORKER_PASSWORD KEDA_PASSWORD VIEWER_PASSWORD
  exec valkey-server /etc/valkey/valkey.conf
ready.sh: |
  test "$(REDISCLI_AUTH="$VIEWER_PASSWORD" valkey-cli --user viewer --no-auth-warning ping)" = PONG
{{- end -}}
