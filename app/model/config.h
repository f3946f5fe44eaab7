/* Reading a model's shape from GGUF metadata. */
#ifndef TKV_MODEL_CONFIG_H
#define TKV_MODEL_CONFIG_H

#include "model/model.h"

/* Fills the config from "general.architecture" and the keys of that architecture. Everything that
 * the forward pass relies on is checked here: counts are positive and bounded, heads group evenly,
 * RoPE fits the head. vocabulary_size stays 0: it is the shape of the token embedding. */
tkv_status tkv_model_config_read(const tkv_gguf *gguf, tkv_model_config *config, tkv_error *error);

#endif
