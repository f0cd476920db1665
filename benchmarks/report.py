"""From the numbers of a table to Markdown; nothing is measured here."""
import math
from collections.abc import Callable

NAMES = {"encode": "latents: `encode`", "alignment": "alignment: `flow` and `alignment_loss`", "every": "`flow`, the loss a mean over all evaluations",
         "euler": "published Euler", "dpm": "published DPM-Solver++", "ours": "ours"}


# -- numbers as text -------------------------------------------------------------------------------

def digits(value: float, count: int = 3) -> str:
    "`count` significant digits, without an exponent from 0.001 to a million."
    if value == 0: return "0"
    if not 1e-3 <= abs(value) < 1e6: return f"{value:.{count - 1}e}"
    return f"{value:,.{max(0, count - 1 - math.floor(math.log10(abs(value))))}f}"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size: return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds / 1e-6)} µs"


def size(count: float) -> str:
    return f"{digits(count / 1e9)} GB" if count >= 1e9 else f"{digits(count / 1e6)} MB"


def times(factor: float) -> str: return f"{digits(factor, 2 if factor < 10 else 3)} ×"


def error(value: float) -> str: return f"{value:.1e}"


def grid(head: list[str], rows: list[list[str]]) -> str:
    "A Markdown table, its first column to the left, the others to the right."
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def count(number: int, noun: str) -> str: return f"{number} {noun}" + "s" * (number != 1)


def listing(names: list[str]) -> str: return ", ".join(names) if names else "none"


def header(result: dict) -> str:
    "Machine, versions and date in one paragraph."
    m, v = result["machine"], result["versions"]
    where = [m["gpu"]] if m["gpu"] else []
    where += [m["cpu"], f"{count(m['cores'], 'core')}, {count(m['threads'], 'thread')} used", m["instructions"]]
    if m["memory_gb"]: where.append(f"{m['memory_gb']:g} GB of memory")
    return f"*{', '.join(where)}; {', '.join(f'{name} {value}' for name, value in v.items())}; {result['date']}.*"


# -- speed -----------------------------------------------------------------------------------------

def factor(row: dict) -> str:
    "How many times faster than the published solver, with the range if it ran more than once."
    if len(row["published_runs"]) == 1: return times(row["times_faster"])
    return f"{times(row['times_faster'])} ({digits(row['times_faster_min'])}–{digits(row['times_faster_max'])})"


def speed_rows(rows: dict) -> str:
    table = []
    for part, row in rows.items():
        if "skipped" in row:
            table.append([NAMES[part], row["skipped"], *[""] * 7])
            continue
        other = row["published"]
        last = [f"{duration(other['seconds'])} (ours beside it: {duration(other['ours_seconds'])})", factor(row), size(row["ours"]["peak_bytes"]), size(other["peak_bytes"]),
                times(row["times_less_memory"])] if "seconds" in other else [other["skipped"], "", size(row["ours"]["peak_bytes"]), "", ""]
        table.append([NAMES[part], duration(row["ours_seconds"]), duration(row["bare_seconds"]),
                      f"{digits(row['ratio'])} ({digits(row['ratio_min'])}–{digits(row['ratio_max'])})", *last])
    return grid(["forward and backward", "ours", "products alone", "ratio (range)", "published Euler", "faster", "memory, ours", "published", "less"], table)


def speed_text(protocol: dict, rows: dict) -> str:
    rates = [row["gflops_per_second"] for row in rows.values() if "skipped" not in row]
    reached = "–".join(dict.fromkeys((digits(min(rates)), digits(max(rates))))) if rates else ""
    rate = f" They reach {reached} GFLOP/s: the machine does not always run at the same speed." if rates else ""
    return (f"n = {protocol['n']} anchors and as many samples, q = {protocol['q']}, {protocol['steps']} evaluations, {protocol['dtype']}, "
            f"forward and backward. *Products alone* are the seven matrix products in an evaluation and its way back, into tensors "
            f"that exist already.{rate} They and ours take turns; the ratio is the median of {protocol['pairs']}, each to the mean of its two "
            f"neighbours. An alignment loss counts the best evaluation of each latent, and the way back from behind it is not taken; the last row "
            f"is a loss whose way back is whole. *Faster* divides a run of the published solver by the median of ours right before and after it; of {count(protocol['baseline_runs'], 'such run')} the middle one is shown. Memory is the peak above what the process held before the call.\n\n{speed_rows(rows)}")


def speed(result: dict) -> str: return speed_text(result["protocol"], result["rows"])


# -- memory ----------------------------------------------------------------------------------------

def memory(result: dict) -> str:
    p, rows, claim = result["protocol"], result["rows"], result["protocol"]["claim"]
    cells = lambda row: [row["skipped"], ""] if "skipped" in row else [duration(row["seconds"]), size(row["peak_bytes"])]
    whose = list(rows)
    head = ["n", *(text for who in whose for text in (f"{NAMES[who] if who == 'ours' else 'published Euler'}: time", "peak memory"))]
    table = grid(head, [[f"{n:,}", *(cell for who in whose for cell in cells(rows[who].get(str(n), {"skipped": ""})))] for n in p["sizes"]])
    text = (f"A batch of n pairs of views: latents of the first through the zones of the second, each into the zone of its own sample; q = {p['q']}, "
            f"{p['steps']} evaluations each way, {p['dtype']}, forward and backward. Each point in a process of its own; memory is the peak above "
            f"what the process held before the call.\n\n{table}")
    point = rows["ours"].get(str(claim["n"]), {})
    if "peak_bytes" not in point: return text
    verdict = "fits" if point["whole_bytes"] <= claim["bytes"] else "**does not fit**"
    return (f"{text}\n\nA batch of {claim['n']:,} {verdict} in {claim['bytes'] / 1e9:g} GB: {size(point['peak_bytes'])}, or "
            f"{size(point['whole_bytes'])} with Python and PyTorch themselves.")


# -- accuracy --------------------------------------------------------------------------------------

def error_cell(e: dict) -> str:
    "Mean, and range where the seeds differ visibly."
    low, high, middle = (error(e[key]) for key in ("min", "max", "mean"))
    return middle if low == high == middle else f"{middle} ({low}–{high})"


def error_grid(result: dict, steps: str, extra: dict) -> str:
    "Errors at one number of evaluations, family by family; `extra` {evaluations: solver} are shown beside them."
    names, mean = {"euler": "Euler", "dpm": "DPM-Solver++", "ours": "ours"}, result["summary"]["geometric_mean"]
    columns = [("euler", steps), ("dpm", steps), *((solver, count) for count, solver in extra.items()), ("ours", steps)]
    head = [names[solver] + (f" ({count} evaluations)" if count != steps else "") for solver, count in columns]
    rows = [[name, *(error_cell(row[solver][count]) for solver, count in columns)] for name, row in result["families"].items()]
    rows.append(["**geometric mean**", *(f"**{error(mean[solver][count])}**" for solver, count in columns)])
    return grid([f"{steps} evaluations", *head], rows)


def error_grids(result: dict) -> str:
    counts = list(result["products"]["ours"])
    odd = [count for count in result["products"]["dpm"] if count not in counts]
    extras = {count: {o: "dpm" for o in odd if count == min((c for c in counts if int(c) > int(o)), key=int)} for count in counts}
    return "\n\n".join(error_grid(result, count, extras[count]) for count in counts)


def accuracy_lines(summary: dict) -> str:
    fewer, equal = summary["fewer_against_more"], summary["equal"]
    better = [name for name, factor in fewer["families"].items() if factor >= 1]
    by_family = ", ".join(f"{name} {times(factor)}" for name, factor in equal["families"].items())
    return "\n".join([
        f"- Ours with {fewer['ours']} evaluations against the better published solver with up to {fewer['published']}: {times(fewer['geometric_mean'])} as "
        f"accurate in the geometric mean; at least as accurate in {len(better)} of {len(fewer['families'])} families ({listing(better)}).",
        f"- {equal['evaluations']} evaluations each: {times(equal['of_better_solver'])} as accurate as the published solver with the better geometric mean, "
        f"{times(equal['of_family_best'])} as the better one of each family. By family: {by_family}.",
        *(f"- Families in which ours is worse than the better published solver with up to {steps} evaluations: {listing(names)}."
          for steps, names in summary["worse"].items())])


def precision_grid(result: dict) -> str:
    keys = ("latents", "gradient")
    cell = lambda e: f"{error(e['mean'])} (at most {error(e['max'])})"
    return grid(["family", *keys], [[name, *(cell(row[key]) for key in keys)] for name, row in result["precision"].items()])


def accuracy(result: dict) -> str:
    p, products = result["protocol"], result["products"]
    in_order = lambda row: ", ".join(f"{steps} evaluations {digits(found)}" for steps, found in row.items())
    counted = "; ".join(f"{NAMES[solver]}: {in_order(row)}" for solver, row in products.items())
    return (f"Relative error of the latents of n = {p['n']} anchors, ‖z − z\\*‖/‖z\\*‖: mean over {count(len(p['seeds']), 'seed')} (least–largest), "
            f"in {p['dtype']}. The exact latents z\\* are from {p['truth_steps']} steps of fourth-order Runge–Kutta. DPM-Solver is shown with 9 "
            f"evaluations, too: with fewer than 10 it lowers its order at the end, with 10 it does not, and its last step can go astray; *better "
            f"published* below means the best of both published solvers with so many evaluations or fewer.\n\n{error_grids(result)}\n\n"
            f"{accuracy_lines(result['summary'])}\n\n"
            f"What an evaluation costs, counted in products of the shape [n,q] × [q,n] for all latents: {counted}. Ours has no evaluation at λ = 0, "
            f"where the slope is the mean of all anchors, and one more product for the distances that set the windows.\n\n"
            f"Precision: relative distance between ours in float32 and in float64, {p['precision_steps']} evaluations, of the latents and of the "
            f"gradient of a random linear function of them.\n\n{precision_grid(result)}")


# -- full set --------------------------------------------------------------------------------------

def full_set(result: dict) -> str:
    p = result["protocol"]
    text = f"m = {p['m']:,} queries among n = {p['n']:,} anchors, q = {p['q']}, {p['steps']} evaluations, {p['dtype']}, no gradients."
    if "skipped" in result: return f"{text} Not measured: {result['skipped']}."
    names = {"encode": "latents of samples of the set: `encode(index)`", "guests": "latents of others: `encode(points=…)`", "distances": "distances of all anchors, once before the first `decode`", "decode": "assignments: `decode`"}
    rows = []
    for name, row in result["parts"].items():
        bare = [duration(row["bare_seconds"]), digits(row["ratio"])] if "ratio" in row else ["", ""]
        rows.append([names[name], duration(row["seconds"]), *bare, size(row["whole_bytes"])])
    for title, other in (("**all, samples of the set**", "guests"), ("**all, other samples**", "encode")):
        chosen = [row for name, row in result["parts"].items() if name != other]
        seconds, floor = (sum(row.get(key, 0) for row in chosen) for key in ("seconds", "bare_seconds"))
        rows.append([title, duration(seconds), duration(floor), digits(seconds / floor), size(max(row["whole_bytes"] for row in chosen))])
    rates = [rate / 1e9 for rate in result["flops_per_second"]]
    return (f"{text} *Products alone* is extrapolated: the rate of both products of one block of {result['block']} queries, measured {p['repeats']} "
            f"times before and after each part ({digits(min(rates))}–{digits(max(rates))} GFLOP/s), on {digits(result['flops'] / 1e12)} Tflop in all "
            f"evaluations. Memory includes Python and PyTorch themselves.\n\n"
            f"{grid(['part', 'ours', 'products alone', 'ratio', 'peak memory of the process'], rows)}\n\n"
            f"Decoded to the anchor that they came from: {result['at_home']:.2%} of the latents.")


# -- GPU -------------------------------------------------------------------------------------------

def candidate_rows(rows: dict) -> str:
    def line(name: str, precision: str, row: dict) -> list[str]:
        if "skipped" in row: return [name, precision, row["skipped"], *[""] * 6]
        found = row["errors"]
        both = duration(row["both_seconds"]) if "both_seconds" in row else found.get("no_gradient", "")
        peak = size(row["peak_bytes"]) if "peak_bytes" in row else ""
        errors = [error(found[key]) if key in found else "" for key in ("mean", "log_prob", "by_y", "by_anchors")]
        return [name, precision, duration(row["forward_seconds"]), both, peak, *errors]
    lines = [line(name, precision, row) for name, by_precision in rows.items() for precision, row in by_precision.items()]
    head = ["one evaluation", "precision", "forward", "and backward", "peak memory", "error: mean", "log-probability", "gradient by y", "by anchors"]
    return grid(head, lines)


def gpu(result: dict) -> str:
    parts = []
    for one in result["speed"]:
        parts += [f"### n = {one['protocol']['n']:,}, q = {one['protocol']['q']}", speed_text(one["protocol"], one["rows"])]
    for one in result["candidates"]:
        parts += [f"### One evaluation, n = {one['n']:,}, q = {one['q']}",
                  "Ways to compute the slope and the log-probability of each target, and their derivatives by samples and anchors. Errors are relative, "
                  "to float64. Where no error of the log-probability is given, the interface keeps the log-sum-exp to itself. *products*: the matrix "
                  "products alone.", candidate_rows(one["rows"])]
    return "\n\n".join(parts)


# -- scaling ---------------------------------------------------------------------------------------

def scaling(result: dict) -> str:
    p, rates, rows = result["protocol"], result["rates"], []
    for row in result["rows"]:
        said = sum(row["predicted"].values())
        rows.append([f"{row['batch']:,}", str(row["q"]), str(row["evaluations"]), str(row["ranks"]), duration(row["seconds"]), duration(said), digits(said / row["seconds"]),
                     *(duration(row["predicted"][part]) for part in ("fixed", "networks", "zones", "messages"))])
    head = ["batch", "q", "evaluations each way", "ranks", "measured", "predicted", "ratio", "fixed", "networks", "zones", "messages"]
    return (f"Updates of the joint scenario (preset {p['preset']}, images of {p['shape'][1]} × {p['shape'][2]}), a process with one thread for each rank, the fastest of {p['repeats']}. "
            f"Rates, from networks alone and zones alone at {p['small']} and {p['large']} samples and a sum of the gradient over two ranks: networks {digits(rates['network_rate'] / 1e9)} GFLOP/s "
            f"({digits(result['flops'] / 1e6)} Mflop a sample), zones {digits(rates['zone_rate'] / 1e9)} GFLOP/s, messages {digits(rates['bandwidth'] / 1e9)} GB/s, "
            f"{duration(rates['fixed'])} for each update and {duration(rates['per_evaluation'])} for each evaluation.\n\n{grid(head, rows)}")


# -- training --------------------------------------------------------------------------------------

def training(result: dict) -> str:
    p, parts, reading = result["protocol"], result["parts"], result["reading"]
    cell = lambda scenario, name: f"{duration(parts[scenario][name])} ({parts[scenario][name] / parts[scenario]['update']:.0%})" if name in parts[scenario] else "–"
    split = grid(["part of an update", *parts], [[name, *(cell(scenario, name) for scenario in parts)] for name in parts["representation"]])
    rows = [[name, row["skipped"], "", "", "", ""] if "skipped" in row else
            [name, duration(row["first"]), duration(row["seconds"]), duration(row["plain"]), f"{times(row['gain'])} ({row['gain_min']:.2f}–{row['gain_max']:.2f})", f"{row['loss']:.4f}"] for name, row in result["options"].items()]
    more = grid(["images", "samples an update", "update", "zones", "share"], [[f"{row['pixels']} × {row['pixels']}", f"{row['batch']:,}", duration(row["update"]), duration(row["zones"]), f"{row['zones'] / row['update']:.1%}"] for row in result["overhead"]])
    return (f"Updates of the three scenarios, preset {p['preset']}, {p['data']}, {p['batch']} samples; the parts take turns, medians of {p['repeats']} and shares of the update.\n\n{split}\n\n"
            f"What zones add to an update of the first scenario: the way from the anchors to the latents and back, timed alone, in turns with whole updates (batches beyond the data set are filled with moved copies):\n\n{more}\n\n"
            f"What the options bring: updates of the joint scenario with the option and updates as it is take turns, the gain is the median of {p['repeats']} ratios (and their range). The loss is that of the sixth update, to see that they compute the same.\n\n"
            f"{grid(['option', 'first update', 'update', 'as it is', 'gain (range)', 'loss'], rows)}\n\n"
            f"Images from a folder: a batch of JPEG files of {p['photo']} × {p['photo']}, reduced to 8 × 8, read one by one between updates, or by `batches`: by threads, ahead where a core is free.\n\n"
            f"{grid(['', *reading], [[name, *(duration(found[name]) for found in reading.values())] for name in next(iter(reading.values()))])}")


# -- rates -----------------------------------------------------------------------------------------

def spread_of(values: list[float], form: Callable[[float], str]) -> str:
    "Mean and, of several, standard deviation."
    mean = sum(values) / len(values)
    if len(values) == 1: return form(mean)
    return f"{form(mean)} ± {form(math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)))}"


def rates(result: dict) -> str:
    p = result["protocol"]
    names = {"proxy_fid_2": "2 evaluations", "proxy_fid_4": "4", "proxy_fid_8": "8", "proxy_fid_50": "50", "curvature": "curvature", "reconstruction_10": "reconstruction"}
    form = lambda key: "{:.3f}".format if key == "curvature" else "{:.2f}".format
    rows = [[name, *(spread_of([run[key] for run in runs], form(key)) for key in names)] for name, runs in result["rows"].items()]
    return (f"The generation scenario, preset {p['preset']}, by the ratio of the encoder's learning rate to the decoder's ({p['rate_decoder']:g}): proxy-FID of {p['drawn']:,} drawn images against the *validation* split, curvature of the paths, "
            f"reconstruction of training images in 10 Euler steps each way. {p['data']}; {p['steps']:,} updates of {p['batch']}, latent {p['latent_dim']}, {count(p['seeds'], 'seed')}, mean ± standard deviation.\n\n"
            f"{grid(['ratio', *names.values()], rows)}")


# -- study -----------------------------------------------------------------------------------------

def study(result: dict) -> str:
    p = result["protocol"]
    names = {"probe_backbone": "probe, backbone", "knn_backbone": "neighbours", "probe_anchor": "probe, anchor", "knn_anchor": "neighbours", "arrived": "arrive", "rank_anchor": "rank of the anchors", "solver_error": "error of the latents"}
    form = {"rank_anchor": "{:.1f}".format, "solver_error": error}
    rows = [[name, *(spread_of([run[key] for run in runs], form.get(key, lambda share: f"{100 * share:.2f}")) for key in names)] for name, runs in result["rows"].items()]
    return (f"The representation scenario, preset {p['preset']}, one setting changed at a time; as it is: α = {p['alpha']:g}, cut-off {p['cutoff']:.0%}, window λ ≤ {p['window']:g}, {p['zone_steps']} evaluations, batch {p['batch']}, latent {p['latent_dim']}. "
            f"{p['data']}; {p['steps']:,} updates. Linear probe and 20 neighbours (%) on the *validation* split, as seen from the mean of the training features; the share of the latents of {p['batch']} validation images' views that arrive (%); "
            f"{count(p['seeds'], 'seed')}, mean ± standard deviation.\n\n{grid(['', *names.values()], rows)}")


# -- joint study -------------------------------------------------------------------------------------

def joint_study(result: dict) -> str:
    p = result["protocol"]
    share, plain = (lambda x: f"{100 * x:.2f}"), "{:.2f}".format
    names = {**{f"accuracy_{size}_{alpha}": (f"{size if size != 'all' else 'all training'} images, α = {alpha}", share) for size in (20, 128, 1000, "all") for alpha in ("0", "1")},
             "agreement": ("drawn as asked", share), "asked": ("proxy-FID", plain), "reconstruction": ("reconstruction", "{:.3f}".format)}
    known = [key for key in names if any(key in runs[0] for runs in result["rows"].values())]
    rows = [[name, *(spread_of([run[key] for run in runs], names[key][1]) if key in runs[0] else "–" for key in known)] for name, runs in result["rows"].items()]
    return (f"The joint scenario, preset {p['preset']}, one setting changed at a time; as it is: the centres of zones aligned at a sharpness of {p['sharpness']:g}, cut-off {p['cutoff']:.0%}, batch {p['batch']}, latent {p['latent_dim']}, α = 1. {p['data']}; {p['steps']:,} updates. "
            f"Accuracy (%) on the *validation* split by how many images share the space (all training: each joins the zones of up to 10,000 training images alone) and by α; the share of {p['drawn']} drawn images that are of the class asked for (%), "
            f"their proxy-FID, reconstruction of 200 images; {count(p['seeds'], 'seed')}, mean ± standard deviation.{' These three: ' + p['these three'] + '.' if 'these three' in p else ''}\n\n{grid(['', *(names[key][0] for key in known)], rows)}")


# -- all -------------------------------------------------------------------------------------------

TABLES = {"speed": (speed, "Speed"), "memory": (memory, "Time and memory by batch size"), "accuracy": (accuracy, "Accuracy by evaluation"),
          "full-set": (full_set, "A whole data set"), "gpu": (gpu, "On a GPU"), "training": (training, "Updates of the scenarios, and what makes them faster"),
          "scaling": (scaling, "Updates on one rank and on two"), "rates": (rates, "The learning rate of the encoder"), "study": (study, "What matters in latent alignment"),
          "joint-study": (joint_study, "What matters in joint training")}


def render(result: dict, title: bool = True) -> str:
    "Markdown of a table from its numbers: what was measured how, the table, what follows from it, and on what it was measured."
    write, name = TABLES[result["table"]]
    return (f"## {name}\n\n" if title else "") + f"{write(result)}\n\n{header(result)}\n"
