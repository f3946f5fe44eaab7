/* The list of policies that an evaluation compares. */
#include "cli/eval.h"
#include "common/try.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static tkv_status parse_types(const char *text, tkv_policy *policy, tkv_error *error)
{
    char type_k[32];
    const char *slash = strchr(text, '/');
    const size_t length = slash ? (size_t)(slash - text) : strlen(text);
    snprintf(type_k, sizeof type_k, "%.*s", (int)(length < 31 ? length : 31), text);
    TKV_TRY(tkv_type_from_name(type_k, &policy->type_k, error));
    return tkv_type_from_name(slash ? slash + 1 : type_k, &policy->type_v, error);
}

static tkv_status parse_entry(const char *text, tkv_policy *policy, tkv_error *error)
{
    *policy = (tkv_policy){0};
    if (*text == '@') {
        return command_read_policy(text + 1, policy, error);
    }
    if (tkv_policy_preset(text, policy, NULL) == TKV_OK) {
        return TKV_OK;
    }
    if (strchr(text, ' ') || strchr(text, '=')) {
        return tkv_policy_parse(text, policy, error);
    }
    *policy = (tkv_policy)COMMAND_POLICY;
    return parse_types(text, policy, error);
}

tkv_status policy_list_parse(const char *text, policy_list *list, tkv_error *error)
{
    list->names = strdup(text);
    if (!list->names) {
        return tkv_fail(error, TKV_ERR_OUT_OF_MEMORY, "no memory for the policies");
    }
    char *rest = list->names;
    char *name;
    while ((name = strsep(&rest, ","))) {
        const int i = list->n;
        if (i == EVAL_MAX_POLICIES) {
            return tkv_fail(error, TKV_ERR_INVALID_ARGUMENT, "more than %d policies",
                            EVAL_MAX_POLICIES);
        }
        list->name[i] = name;
        TKV_TRY(parse_entry(name, &list->policy[i], error));
        TKV_TRY(tkv_policy_format(&list->policy[i], list->text[i], EVAL_POLICY_TEXT, error));
        list->n++;
    }
    return TKV_OK;
}
