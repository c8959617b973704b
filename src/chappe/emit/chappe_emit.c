#define _POSIX_C_SOURCE 200809L
#include "chappe_emit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

enum { MOST_FIELDS = 200, FIELD_CHARS = 2000 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Waits for the command. One that takes too long is killed, and is not waited for again. */
static int await(pid_t pid) {
    const char *limit = getenv("CHAPPE_EMIT_LIMIT_S");
    double patience = limit ? atof(limit) : 5.0, began = seconds();
    struct timespec nap = {0, 500000};
    int status;
    for (;;) {
        pid_t found = waitpid(pid, &status, WNOHANG);
        if (found == pid)
            return 0;
        if (found < 0 && errno != EINTR)
            return 1; /* the simulation reaps children by itself */
        if (seconds() - began > (patience > 0.1 ? patience : 0.1) + 1.0) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, WNOHANG);
            return 1;
        }
        nanosleep(&nap, NULL);
    }
}

int chappe_emit(const char *type, int count, const char *const *fields) {
    const char *argv[MOST_FIELDS + 3];
    const char *command = getenv("CHAPPE_EMIT");
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int used = 0, failed;
    argv[used++] = command && *command ? command : "chappe-emit.sh";
    argv[used++] = type;
    for (int i = 0; i < count && i < MOST_FIELDS; i++)
        if (fields[i] && *fields[i])
            argv[used++] = fields[i];
    argv[used] = NULL;
    /* posix_spawn and not fork: with MPI, a fork may cost the registered memory. */
    if (posix_spawn_file_actions_init(&actions) != 0)
        return 1;
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    failed = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return failed ? 1 : await(pid);
}

int chappe_emit_metric(const char *name, double value, long step, const char *time) {
    char texts[4][FIELD_CHARS] = {"", "", "", ""};
    const char *fields[4] = {texts[0], texts[1], texts[2], texts[3]};
    snprintf(texts[0], FIELD_CHARS, "name=%s", name);
    snprintf(texts[1], FIELD_CHARS, "value=%.17g", value);
    if (step >= 0)
        snprintf(texts[2], FIELD_CHARS, "step=%ld", step);
    if (time && *time)
        snprintf(texts[3], FIELD_CHARS, "time=%s", time);
    return chappe_emit("metric", 4, fields);
}

int chappe_emit_period(const char *begin, const char *end) {
    char texts[2][FIELD_CHARS];
    const char *fields[2] = {texts[0], texts[1]};
    snprintf(texts[0], FIELD_CHARS, "PeriodDateBegin=%s", begin);
    snprintf(texts[1], FIELD_CHARS, "PeriodDateEnd=%s", end);
    return chappe_emit("job.period", 2, fields);
}
