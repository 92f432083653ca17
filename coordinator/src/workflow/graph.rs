//! The graph of `needs`: order, cycles, ancestors. Steps are numbers here, in the order they were written.
//!
//! Ordering costs one visit per step and edge. Ancestry is asked for many pairs at once and answered for 512 sources per
//! sweep, so that 100,000 references over 1,000,000 edges stay within a second or two.

/// Cycles that are looked for; each is one problem in the report.
const CYCLES_MAX: usize = 10;
/// Words of 64 sources that one sweep carries along.
const WORDS: usize = 8;
const LANES: usize = WORDS * 64;

/// Who needs whom. No step needs itself and no step needs another twice.
pub(super) struct Graph {
    needs: Vec<Vec<u32>>,
}

impl Graph {
    /// `needs[s]` are the steps that step `s` needs.
    pub(super) fn new(needs: Vec<Vec<u32>>) -> Self {
        Self { needs }
    }

    /// All steps so that each comes after those it needs.
    ///
    /// # Errors
    /// Cycles that have no step in common, at most [`CYCLES_MAX`]; each begins with its smallest step, and each step of it needs
    /// the next, the last the first.
    pub(super) fn order(&self) -> Result<Vec<u32>, Vec<Vec<u32>>> {
        let count = self.needs.len();
        let mut missing: Vec<u32> = self.needs.iter().map(|n| index(n.len())).collect();
        let mut dependants: Vec<Vec<u32>> = vec![Vec::new(); count];
        for (step, needs) in self.needs.iter().enumerate() {
            for need in needs {
                dependants[*need as usize].push(index(step));
            }
        }
        let mut order: Vec<u32> = Vec::with_capacity(count);
        order.extend((0..index(count)).filter(|s| missing[*s as usize] == 0));
        let mut placed = vec![false; count];
        let mut cycles = Vec::new();
        let (mut next, mut first_left) = (0, 0);
        loop {
            while let Some(step) = order.get(next).copied() {
                next += 1;
                placed[step as usize] = true;
                for dependant in &dependants[step as usize] {
                    let left = &mut missing[*dependant as usize];
                    *left = left.saturating_sub(1);
                    if *left == 0 && !placed[*dependant as usize] {
                        order.push(*dependant);
                    }
                }
            }
            while first_left < count && placed[first_left] {
                first_left += 1;
            }
            if first_left == count || cycles.len() == CYCLES_MAX {
                break;
            }
            // The steps of a cycle count as placed from here, so that what only hangs on it is not reported too.
            let cycle = self.cycle_above(first_left, &placed);
            for step in &cycle {
                missing[*step as usize] = 0;
                placed[*step as usize] = true;
                order.push(*step);
            }
            cycles.push(cycle);
        }
        if cycles.is_empty() { Ok(order) } else { Err(cycles) }
    }

    /// A cycle that `start` is in or hangs on. Every step that is not placed needs another that is not placed.
    fn cycle_above(&self, start: usize, placed: &[bool]) -> Vec<u32> {
        let mut seen_at = std::collections::HashMap::new();
        let mut path = Vec::new();
        let mut step = index(start);
        let begin = loop {
            if let Some(begin) = seen_at.insert(step, path.len()) {
                break begin;
            }
            path.push(step);
            let above = self.needs[step as usize].iter().find(|n| !placed[**n as usize]);
            step = *above.expect("a step without a place needs one without a place");
        };
        let mut cycle = path.split_off(begin);
        let smallest = (0..cycle.len()).min_by_key(|i| cycle[*i]).expect("a cycle has a step");
        cycle.rotate_left(smallest);
        cycle
    }

    /// Which of the pairs (step, source) name a source that the step does not need, not even through others. Given is an
    /// order of [`Self::order`]; answered are positions in `pairs`, ascending.
    pub(super) fn not_ancestors(&self, order: &[u32], pairs: &[(u32, u32)]) -> Vec<usize> {
        let mut rank = vec![0u32; order.len()];
        for (i, step) in order.iter().enumerate() {
            rank[*step as usize] = index(i);
        }
        let mut wrong = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        // Marks what the step of the pair needs, so that a step with many needs and many references is no square.
        let mut needed_by = vec![u32::MAX; order.len()];
        let mut marked = u32::MAX;
        for (i, (step, source)) in pairs.iter().enumerate() {
            if marked != *step {
                marked = *step;
                self.needs[*step as usize].iter().for_each(|need| needed_by[*need as usize] = *step);
            }
            if needed_by[*source as usize] == *step {
                continue;
            }
            if rank[*source as usize] >= rank[*step as usize] { wrong.push(i) } else { open.push(i) }
        }
        open.sort_by_key(|i| rank[pairs[*i].1 as usize]);
        let mut reached = if open.is_empty() { Vec::new() } else { vec![[0u64; WORDS]; order.len()] };
        let mut from = 0;
        while from < open.len() {
            let mut lanes: Vec<u32> = Vec::with_capacity(LANES);
            let mut to = from;
            while to < open.len() {
                let source = pairs[open[to]].1;
                if lanes.last() != Some(&source) {
                    if lanes.len() == LANES {
                        break;
                    }
                    lanes.push(source);
                }
                to += 1;
            }
            let last = open[from..to].iter().map(|i| rank[pairs[*i].0 as usize]).max().unwrap_or(0);
            self.sweep(order, &rank, &lanes, last, &mut reached);
            for i in &open[from..to] {
                let (step, source) = pairs[*i];
                let lane = lanes.binary_search_by_key(&rank[source as usize], |s| rank[*s as usize]);
                let lane = lane.expect("the source has a lane");
                if reached[step as usize][lane / 64] >> (lane % 64) & 1 == 0 {
                    wrong.push(*i);
                }
            }
            from = to;
        }
        wrong.sort_unstable();
        wrong
    }

    /// Fills `reached` with the sources in `lanes` above each step, from the first source to the place `last`.
    #[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would only move the list")]
    fn sweep(&self, order: &[u32], rank: &[u32], lanes: &[u32], last: u32, reached: &mut [[u64; WORDS]]) {
        let first = rank[lanes[0] as usize];
        for step in &order[first as usize..=last as usize] {
            let mut bits = [0u64; WORDS];
            for need in self.needs[*step as usize].iter().filter(|n| rank[**n as usize] >= first) {
                for (mine, theirs) in bits.iter_mut().zip(reached[*need as usize]) {
                    *mine |= theirs;
                }
            }
            // A source counts as above itself, so that those who need it find it there.
            if let Ok(lane) = lanes.binary_search_by_key(&rank[*step as usize], |s| rank[*s as usize]) {
                bits[lane / 64] |= 1 << (lane % 64);
            }
            reached[*step as usize] = bits;
        }
    }
}

fn index(n: usize) -> u32 {
    u32::try_from(n).expect("the number of steps is bounded")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cycles_are_found_and_what_hangs_on_them_is_not_blamed() {
        // 0 -> 1 -> 0; 2 hangs on it; 3 -> 5 -> 4 -> 3; 6 is free.
        let graph = Graph::new(vec![vec![1], vec![0], vec![1], vec![5], vec![3], vec![4], vec![]]);
        assert_eq!(graph.order(), Err(vec![vec![0, 1], vec![3, 5, 4]]));
    }

    /// A graph without cycles: a step needs only earlier ones, but the numbers are not in order.
    fn graphs() -> impl Strategy<Value = Vec<Vec<u32>>> {
        prop::collection::vec(prop::collection::btree_set(0u32..60, 0..4), 1..60).prop_map(|sets| {
            let n = sets.len() as u32;
            let name = |i: u32| n - 1 - i;
            let mut needs = vec![Vec::new(); sets.len()];
            for (i, set) in sets.into_iter().enumerate() {
                needs[name(i as u32) as usize] = set.into_iter().filter(|x| (*x as usize) < i).map(name).collect();
            }
            needs
        })
    }

    proptest! {
        #[test]
        fn order_and_ancestry_agree_with_the_plain_definition(needs in graphs()) {
            let n = needs.len() as u32;
            let graph = Graph::new(needs.clone());
            let order = graph.order().expect("no cycle");
            let place = |s: u32| order.iter().position(|x| *x == s).expect("every step has a place");
            let mut above: Vec<std::collections::BTreeSet<u32>> = vec![Default::default(); needs.len()];
            for s in &order {
                for need in &needs[*s as usize] {
                    prop_assert!(place(*need) < place(*s));
                    let more = above[*need as usize].clone();
                    above[*s as usize].extend(more);
                    above[*s as usize].insert(*need);
                }
            }
            let pairs: Vec<(u32, u32)> = (0..n).flat_map(|s| (0..n).map(move |t| (s, t))).collect();
            let wrong: Vec<usize> =
                (0..pairs.len()).filter(|i| !above[pairs[*i].0 as usize].contains(&pairs[*i].1)).collect();
            prop_assert_eq!(graph.not_ancestors(&order, &pairs), wrong);
        }
    }
}
