/* What a policy may be, for who takes one as a caller has filled it in. */
#ifndef TKV_CACHE_POLICY_H
#define TKV_CACHE_POLICY_H

#include "turbokv.h"

/* Counts from 0, types that exist, ranges that begin before they end and are no more than there is
 * room for. `policy` may be NULL, which it must not be. */
tkv_status tkv_check_policy(const tkv_policy *policy, tkv_error *error);

#endif
