/* What holds unless the library has a bug. Builds with TKV_ASSERTIONS, which are for tests, stop
 * where it does not; in others nothing is evaluated. */
#ifndef TKV_BASE_ASSERT_H
#define TKV_BASE_ASSERT_H

#ifdef TKV_ASSERTIONS
#define tkv_assert(condition)                                                                      \
    ((condition) ? (void)0 : tkv_assertion_failed(#condition, __FILE__, __LINE__))
_Noreturn void tkv_assertion_failed(const char *condition, const char *file, int line);
#else
#define tkv_assert(condition) ((void)sizeof(condition))
#endif

#endif
