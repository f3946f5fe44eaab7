#include "cli/llama_options.h"

#include <stddef.h>
#include <string.h>

#define ALWAYS "*"

static const llama_option options[] = {
    /* Where and how it computes. */
    {"-ngl --gpu-layers --n-gpu-layers", LLAMA_VALUE, "0", "layers stay where --device says"},
    {"-sm --split-mode", LLAMA_VALUE, "none", "a model is on one device, the one of --device"},
    {"-ts --tensor-split", LLAMA_VALUE, NULL, "a model is on one device, the one of --device"},
    {"-mg --main-gpu", LLAMA_VALUE, NULL, "give the GPU's number with --device, as cuda:1"},
    {"-dev", LLAMA_VALUE, "none", "give the device with --device"},
    {"--list-devices", LLAMA_NO_VALUE, NULL, "'turbokv gate' lists them"},
    {"-nkvo --no-kv-offload", LLAMA_NO_VALUE, NULL,
     "the KV cache is where --device says, with the layers"},
    {"-kvo --kv-offload --op-offload --no-op-offload --no-host", LLAMA_NO_VALUE, ALWAYS,
     "everything is where --device says"},
    {"-ot --override-tensor", LLAMA_VALUE, NULL, "tensors are where --device says"},
    {"-cmoe --cpu-moe", LLAMA_NO_VALUE, NULL, "models with experts are not run"},
    {"-ncmoe --n-cpu-moe --moe-cache-mib -ncffn --n-cpu-ffn", LLAMA_VALUE, "0",
     "layers stay where --device says"},
    {"-fit --fit", LLAMA_SWITCH, "off", "'turbokv plan' tells what fits"},
    {"-fitt --fit-target -fitc --fit-ctx", LLAMA_VALUE, NULL, "'turbokv plan' tells what fits"},
    {"-fa --flash-attn", LLAMA_SWITCH, ALWAYS, "attention never keeps the whole matrix of weights"},
    {"--no-flash-attn", LLAMA_NO_VALUE, ALWAYS,
     "attention never keeps the whole matrix of weights"},
    {"-tb --threads-batch", LLAMA_VALUE, ALWAYS, "-t says it for prefill and decode"},
    {"-C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll -Cb --cpu-mask-batch -Crb "
     "--cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch",
     LLAMA_VALUE, ALWAYS, "taskset, nice and the like place the threads"},
    {"--numa", LLAMA_VALUE, ALWAYS, "numactl places the threads"},
    {"--rpc", LLAMA_VALUE, NULL, "everything is computed on this machine"},
    {"-b --batch --batch-size -ub --ubatch-size", LLAMA_VALUE, ALWAYS,
     "this command's batches have their own size"},
    {"-np --parallel", LLAMA_VALUE, "1 -1", "there is one sequence at a time"},
    {"-ns --sequences", LLAMA_VALUE, "1", "there is one sequence at a time"},
    {"-cb --cont-batching -nocb --no-cont-batching", LLAMA_NO_VALUE, ALWAYS,
     "there is one sequence at a time"},
    /* The model, and how it is read. */
    {"-hf -hfr --hf-repo -mu --model-url -dr --docker-repo", LLAMA_VALUE, NULL,
     "models are not downloaded: give a file with -m"},
    {"-hff --hf-file -hft --hf-token", LLAMA_VALUE, NULL,
     "models are not downloaded: give a file with -m"},
    {"-cl --cache-list", LLAMA_NO_VALUE, NULL, "models are not downloaded: give a file with -m"},
    {"--offline", LLAMA_NO_VALUE, ALWAYS, "nothing is ever downloaded"},
    {"--gpt-oss-20b-default --gpt-oss-120b-default --vision-gemma-4b-default "
     "--vision-gemma-12b-default",
     LLAMA_NO_VALUE, NULL, "models are not downloaded: give a file with -m"},
    {"--mmap --no-mmap -dio --direct-io -ndio --no-direct-io --repack -nr --no-repack "
     "--check-tensors",
     LLAMA_NO_VALUE, ALWAYS, "model files are mapped and checked"},
    {"-lm --load-mode -lzm --lazy-mode", LLAMA_VALUE, ALWAYS, "model files are mapped"},
    {"--mlock", LLAMA_NO_VALUE, NULL, "memory is not locked"},
    {"--warmup --no-warmup", LLAMA_NO_VALUE, ALWAYS, "there is no warm-up"},
    {"--override-kv", LLAMA_VALUE, NULL, "metadata counts as it is in the file"},
    {"--lora --lora-scaled --lora-base", LLAMA_VALUE, NULL, "there are no LoRA adapters"},
    {"--lora-init-without-apply", LLAMA_NO_VALUE, NULL, "there are no LoRA adapters"},
    {"--control-vector --control-vector-scaled", LLAMA_VALUE, NULL, "there are no control vectors"},
    {"--control-vector-layer-range", LLAMA_TWO_VALUES, NULL, "there are no control vectors"},
    {"--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx "
     "--yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast",
     LLAMA_VALUE, NULL, "positions are turned as the model's file says"},
    {"-gan --grp-attn-n -gaw --grp-attn-w", LLAMA_VALUE, NULL, "there is no self-extend"},
    {"-mm --mmproj -mmu --mmproj-url -mmdev --mmproj-device --image --audio --video "
     "--image-min-tokens --image-max-tokens --mtmd-batch-max-tokens --video-fps "
     "--video-timestamp-interval --video-ffmpeg-dir",
     LLAMA_VALUE, NULL, "models take text only"},
    {"--mmproj-auto --no-mmproj --no-mmproj-auto --mmproj-offload --no-mmproj-offload",
     LLAMA_NO_VALUE, ALWAYS, "models take text only"},
    /* The KV cache. */
    {"-dt --defrag-thold", LLAMA_VALUE, ALWAYS, "the KV cache has no holes"},
    {"-ctkd --cache-type-k-draft --spec-draft-type-k -ctvd --cache-type-v-draft "
     "--spec-draft-type-v",
     LLAMA_VALUE, NULL, "there are no draft models"},
    {"--swa-full", LLAMA_NO_VALUE, ALWAYS, "a sliding window is computed alike with either"},
    {"-kvu --kv-unified -no-kvu --no-kv-unified", LLAMA_NO_VALUE, ALWAYS,
     "there is one sequence at a time"},
    {"-ctxcp --ctx-checkpoints --swa-checkpoints -cpent --checkpoint-every-n-tokens -cram "
     "--cache-ram --cache-reuse",
     LLAMA_VALUE, "0", "caches are not kept from one run to the next"},
    {"--prompt-cache", LLAMA_VALUE, NULL, "caches are not kept from one run to the next"},
    {"--prompt-cache-all --prompt-cache-ro --cache-prompt", LLAMA_NO_VALUE, NULL,
     "caches are not kept from one run to the next"},
    {"--no-cache-prompt --no-context-shift -dkvc --dump-kv-cache", LLAMA_NO_VALUE, ALWAYS,
     "it is so anyway, or shows nothing here"},
    /* The prompt, and talking. */
    {"-i --interactive -if --interactive-first -cnv --conversation", LLAMA_NO_VALUE, NULL,
     "one prompt is read, one text is written; 'run --chat' puts it into the model's chat form"},
    {"-no-cnv -nocnv --no-conversation -st --single-turn", LLAMA_NO_VALUE, ALWAYS,
     "one prompt is read, one text is written"},
    {"-ins --instruct -cml --chatml", LLAMA_NO_VALUE, NULL,
     "'run --chat' puts the prompt into the model's chat form"},
    {"-sys --system-prompt -sysf --system-prompt-file --chat-template --chat-template-file "
     "--chat-template-kwargs",
     LLAMA_VALUE, NULL, "'run --chat' puts the prompt into the model's chat form"},
    {"--jinja --no-jinja", LLAMA_NO_VALUE, ALWAYS, "templates are not run"},
    {"-rea --reasoning", LLAMA_SWITCH, "auto", "the text is written as the model gives it"},
    {"--reasoning-format --reasoning-effort --reasoning-budget --reasoning-budget-message",
     LLAMA_VALUE, "none auto default -1", "the text is written as the model gives it"},
    {"--reasoning-preserve --no-reasoning-preserve --skip-chat-parsing --no-skip-chat-parsing "
     "--prefill-assistant --no-prefill-assistant",
     LLAMA_NO_VALUE, ALWAYS, "the text is written as the model gives it"},
    {"-r --reverse-prompt", LLAMA_VALUE, NULL, "a text ends with the model's end token or -n"},
    {"--in-prefix --in-suffix", LLAMA_VALUE, NULL, "one prompt is read, one text is written"},
    {"--in-prefix-bos -mli --multiline-input", LLAMA_NO_VALUE, NULL,
     "one prompt is read, one text is written"},
    {"-e --escape", LLAMA_NO_VALUE, NULL,
     "a prompt is taken as it is: give line ends with the shell's $'...' or with -f"},
    {"--no-escape", LLAMA_NO_VALUE, ALWAYS, "a prompt is taken as it is"},
    {"-bf --binary-file", LLAMA_VALUE, NULL, "give a text with -f"},
    {"-sp --special", LLAMA_NO_VALUE, NULL, "special tokens are written as their text"},
    {"--spm-infill", LLAMA_NO_VALUE, NULL, "texts are continued only at their end"},
    {"--ignore-eos", LLAMA_NO_VALUE, NULL, "a text ends with the model's end token"},
    /* Sampling. */
    {"--samplers --sampler-seq --sampling-seq", LLAMA_VALUE, NULL,
     "the order is fixed: top-k, top-p, min-p, temperature"},
    {"--mirostat --dry-multiplier --xtc-probability --dynatemp-range --presence-penalty "
     "--frequency-penalty",
     LLAMA_VALUE, "0 0.0 0.00", "sampling is by --temp, --top-k, --top-p and --min-p"},
    {"--repeat-penalty --typical --typical-p", LLAMA_VALUE, "1 1.0 1.00",
     "sampling is by --temp, --top-k, --top-p and --min-p"},
    {"--top-nsigma --top-n-sigma --adaptive-target", LLAMA_VALUE, "-1 -1.0",
     "sampling is by --temp, --top-k, --top-p and --min-p"},
    {"--mirostat-lr --mirostat-ent --repeat-last-n --dry-base --dry-allowed-length "
     "--dry-penalty-last-n --dry-sequence-breaker --xtc-threshold --dynatemp-exp "
     "--adaptive-decay",
     LLAMA_VALUE, ALWAYS, "it matters only beside an option that turbokv lacks"},
    {"-l --logit-bias --grammar --grammar-file -j --json-schema -jf --json-schema-file",
     LLAMA_VALUE, NULL, "every token may be drawn"},
    {"-bs --backend-sampling", LLAMA_NO_VALUE, ALWAYS, "it changes no text"},
    /* Drafts. */
    {"-md --model-draft --spec-draft-model -hfd -hfrd --hf-repo-draft --spec-draft-hf --draft "
     "--draft-n --draft-max --draft-min --draft-n-min --draft-p-min --draft-p-split -cd "
     "--ctx-size-draft -ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl -devd "
     "--device-draft --spec-draft-device -td --threads-draft --spec-draft-threads -tbd "
     "--threads-batch-draft --spec-draft-threads-batch -Cd -Crd -Cbd -Crbd -otd "
     "--override-tensor-draft -ncmoed --n-cpu-moe-draft --cpu-mask-draft --cpu-range-draft "
     "--cpu-strict-draft --prio-draft --poll-draft --cpu-mask-batch-draft --cpu-strict-batch-draft "
     "--prio-batch-draft --poll-batch-draft -lcs --lookup-cache-static -lcd "
     "--lookup-cache-dynamic --spec-*",
     LLAMA_VALUE, NULL, "there are no draft models"},
    {"-cmoed --cpu-moe-draft", LLAMA_NO_VALUE, NULL, "there are no draft models"},
    /* What is written. */
    {"-co --color --log-colors", LLAMA_SWITCH, ALWAYS, "the text has no colours"},
    {"--display-prompt --no-display-prompt --show-timings --no-show-timings --perf --no-perf "
     "--simple-io --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps "
     "--log-disable --log-jsonl --no-log-jsonl -v --verbose --log-verbose --verbose-prompt -ptc "
     "--print-token-count",
     LLAMA_NO_VALUE, ALWAYS,
     "the text goes to standard output, a summary to standard error; there is no log"},
    {"-lv --verbosity --log-verbosity --log-file --log-prompts-dir -ld --logdir", LLAMA_VALUE,
     ALWAYS, "there is no log"},
    {"-o --output --output-file", LLAMA_VALUE, NULL, "direct standard output into a file"},
    {"--completion-bash", LLAMA_NO_VALUE, NULL, "completions are installed with the program"},
    {"--usage", LLAMA_NO_VALUE, NULL, "--help lists the options"},
    /* The server. */
    {"--host --port --path --api-prefix --api-key --api-key-file --ssl-key-file --ssl-cert-file "
     "-to --timeout --threads-http --slot-save-path -sps --slot-prompt-similarity -a --alias "
     "--tags --models-dir --models-preset --models-max --server-base --pooling --embd-normalize "
     "-id --slot --media-path --tools --tools-runtime --sse-ping-interval --sleep-idle-seconds "
     "--cors-* --mcp-*",
     LLAMA_VALUE, NULL, "there is no server"},
    {"--reuse-port --embedding --embeddings --rerank --reranking --metrics --props --slots "
     "--no-slots --ui --webui --no-ui --no-webui --ui-* --webui-* -ag --agent -no-ag --no-agent "
     "--models-autoload --no-models-autoload --cache-idle-slots --no-cache-idle-slots",
     LLAMA_NO_VALUE, NULL, "there is no server"},
    /* llama-perplexity. */
    {"--perplexity --hellaswag --winogrande --multiple-choice --kl-divergence --all-logits "
     "--ppl-all",
     LLAMA_NO_VALUE, NULL, "'turbokv eval' measures perplexity and divergence"},
    /* llama-bench. */
    {"-mmp -nopo -embd", LLAMA_VALUE, ALWAYS, "a model is mapped, and decodes"},
    {"-pg", LLAMA_VALUE, NULL, "'turbokv bench model' times prefill and decode, each by itself"},
    {"--ppl-stride --ppl-output-type --hellaswag-tasks --winogrande-tasks "
     "--multiple-choice-tasks --kl-divergence-base --save-all-logits",
     LLAMA_VALUE, NULL, "'turbokv eval' measures perplexity and divergence"},
};

/* Whether a list that blanks separate holds a word of this length; "x*" stands for all that begin
 * with x. */
static bool holds(const char *list, const char *word, size_t length)
{
    while (*list) {
        const size_t n = strcspn(list, " ");
        const bool is_prefix = n > 1 && list[n - 1] == '*';
        const size_t n_same = is_prefix ? n - 1 : n;
        if ((is_prefix ? length > n_same : length == n_same) && strncmp(list, word, n_same) == 0) {
            return true;
        }
        list += n + (list[n] == ' ');
    }
    return false;
}

const llama_option *llama_option_find(const char *word)
{
    const size_t length = strcspn(word, "=");
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (holds(options[i].names, word, length)) {
            return &options[i];
        }
    }
    return NULL;
}

int llama_option_takes(const llama_option *option, const char *word, const char *next)
{
    if (!next || strchr(word, '=')) {
        return 0;
    }
    switch (option->argument) {
    case LLAMA_NO_VALUE: return 0;
    case LLAMA_VALUE: return 1;
    case LLAMA_SWITCH: return holds("on off auto 0 1", next, strlen(next));
    case LLAMA_TWO_VALUES: return 2;
    }
    return 0;
}

bool llama_option_is_harmless(const llama_option *option, const char *value)
{
    if (!option->harmless) {
        return false;
    }
    return strcmp(option->harmless, ALWAYS) == 0 ||
           (value && holds(option->harmless, value, strlen(value)));
}
