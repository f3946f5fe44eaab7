/* What a policy may be, for who takes one as a caller has filled it in. */
#ifndef TKV_POLICY_POLICY_H
#define TKV_POLICY_POLICY_H

#include "turbokv.h"

/* Counts from 0, types that exist, ranges that begin before they end and are no more than there is
 * room for. `policy` may be NULL, which it must not be. */
tkv_status tkv_check_policy(const tkv_policy *policy, tkv_error *error);

/* The same for a model of n_layers that keep keys and values. */
tkv_status tkv_check_policy_layers(const tkv_policy *policy, int n_layers, tkv_error *error);

/* The types of one layer of n_layers: of several ranges that hold it, the last counts. */
void tkv_policy_types_of_layer(const tkv_policy *policy, int n_layers, int layer, tkv_type *type_k,
                               tkv_type *type_v);

#endif
