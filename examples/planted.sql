-- `pipelines/planted.toml`: of how many experiments the 95 % interval holds what was planted.
with found as (
    select 'language prior' as planted, m.seed, m.value, m.ci_low, m.ci_high, e.value as truth
    from prior_metrics m
    join asked_expected e on e.seed = m.seed and e.quantity = 'question-only accuracy' and e.split = 'test' and e.subset = 'all'
    where m.metric = 'accuracy' and m.subgroup is null and m.class is null
    union all
    select 'shortcut, test ' || m.test, m.seed, m.value, m.ci_low, m.ci_high, e.value
    from shortcut_metrics m
    join marked_test_expected e on e.seed = m.seed and e.test = m.test and e.quantity = 'marker-only accuracy' and e.subset = 'all'
    where m.metric = 'accuracy' and m.subgroup is null and m.class is null
    union all
    select 'label noise', m.seed, m.value, m.ci_low, m.ci_high,
        (select avg(json_extract(p.prediction, '$[0]') = l.truth_label) from noise_predictions p
         join noisy_labels l on l.seed = p.seed and l.image_id = p.id where p.seed = m.seed)
        * (1 - 2 * e.eta) + e.eta
    from noise_metrics m
    join (select seed, 1 - value as eta from noisy_expected where quantity = 'accuracy of a perfect model') e on e.seed = m.seed
    where m.metric = 'accuracy' and m.method is null and m.subgroup is null and m.class is null
)
select planted, count(*) as experiments, sum(truth between ci_low and ci_high) as inside,
    round(avg(truth), 3) as truth, round(avg(value), 3) as measured, round(avg(ci_high - ci_low) / 2, 3) as half_width
from found group by planted order by planted
