/* Tell a hub what a simulation does, from C: each function starts the command that CHAPPE_EMIT names
 * (without it: chappe-emit.sh, found in PATH), waits for it no longer than CHAPPE_EMIT_LIMIT_S seconds
 * (without it: 5), and never fails. Not from several threads at once. */
#ifndef CHAPPE_EMIT_H
#define CHAPPE_EMIT_H

#ifdef __cplusplus
extern "C" {
#endif

/* Tell something: a type (job.period), a code of libIGCM (1001) or custom.…, and `count` texts NAME=VALUE.
 * Returns 0 when the command ended in time, which is all that a simulation may want to know. */
int chappe_emit(const char *type, int count, const char *const *fields);

/* A number: `step` below 0, and a `time` of NULL or "", are left out. `time` is the model's ("1850-01-31"). */
int chappe_emit_metric(const char *name, double value, long step, const char *time);

/* Output of the model up to `end` is complete; dates are YYYYMMDD in the model's calendar. */
int chappe_emit_period(const char *begin, const char *end);

#ifdef __cplusplus
}
#endif

#endif
