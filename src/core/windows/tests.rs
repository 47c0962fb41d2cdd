//! States against a naive recomputation over all events.

use super::layout::{Kind, Layout};
use super::seen::Sighting;
use super::state::{Event, Fed, ReadAt, WindowState};
use crate::arguments::Arguments;
use crate::definition::FeatureView;
use crate::schema_syntax::{parse_registration, Alteration};
use crate::value::Value;
use proptest::prelude::*;
use std::sync::Arc;

const T0: i64 = 1_700_000_000_000;

fn view(words: &str) -> FeatureView {
    let words: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
    parse_registration(b"v", &mut Arguments::new(&words)).expect("a definition")
}

fn layout(view: &FeatureView) -> Arc<Layout> {
    Layout::of(view).expect("windows")
}

fn feed(state: &mut WindowState, time_ms: i64, x: f64) -> Fed {
    let x = Value::Float(x).to_field();
    state.feed(&Event { time_ms, arrived_ms: i64::MAX >> 9, inputs: &[Some(&x)] })
}

fn read(state: &WindowState, view: &FeatureView, feature: &str, at: ReadAt) -> Option<Option<f64>> {
    let feature = &view.features()[view.position(feature.as_bytes(), 0).expect("a feature")];
    let reading = state.layout().reading(feature.window.as_ref().expect("a window")).expect("a group");
    match state.read(&reading, at).ok()? {
        Some(Value::Int(n)) => Some(Some(n as f64)),
        Some(Value::Float(x)) => Some(Some(x)),
        _ => Some(None),
    }
}

/// Windows and hops in seconds that share groups in many ways.
const WINDOWS: [(i64, i64); 6] = [(10, 1), (60, 5), (60, 10), (300, 10), (600, 60), (35, 7)];

fn schema() -> FeatureView {
    let mut words = String::from("ENTITY u SCHEMA x FLOAT INPUT");
    for (i, (w, h)) in WINDOWS.iter().enumerate() {
        for (name, agg) in [
            ("c", "INT AGG COUNT x"),
            ("s", "FLOAT AGG SUM x"),
            ("v", "FLOAT AGG VAR_POP x"),
            ("lo", "FLOAT AGG MIN x"),
            ("hi", "FLOAT AGG MAX x"),
            ("f", "FLOAT AGG FIRST x"),
            ("l", "FLOAT AGG LAST x"),
            ("d", "INT AGG APPROX_COUNT_DISTINCT x"),
        ] {
            words += &format!(" {name}{i} {agg} WINDOW {w}s HOP {h}s");
        }
    }
    view(&words)
}

fn naive(events: &[(i64, f64)], name: &str, (w, h): (i64, i64), t: i64) -> Option<f64> {
    let (w, h) = (w * 1_000, h * 1_000);
    let (from, to) = (t.div_euclid(h) * h - w, t.div_euclid(h) * h + h);
    let inside: Vec<(i64, f64)> = events.iter().copied().filter(|(t, _)| (from..to).contains(t)).collect();
    let values: Vec<f64> = inside.iter().map(|(_, x)| *x).collect();
    let n = values.len() as f64;
    match name {
        "c" => Some(n),
        "s" => Some(values.iter().sum()),
        "v" => (n > 0.0).then(|| {
            let mean = values.iter().sum::<f64>() / n;
            values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n
        }),
        "lo" => values.iter().copied().reduce(f64::min),
        "hi" => values.iter().copied().reduce(f64::max),
        "f" => inside.iter().reduce(|a, b| if b.0 < a.0 { b } else { a }).map(|(_, x)| *x),
        "l" => inside.iter().reduce(|a, b| if b.0 >= a.0 { b } else { a }).map(|(_, x)| *x),
        _ => {
            let mut bits: Vec<u64> = values.iter().map(|x| x.to_bits()).collect();
            bits.sort_unstable();
            bits.dedup();
            Some(bits.len() as f64)
        }
    }
}

fn is_same(expected: Option<f64>, got: Option<f64>) -> bool {
    match (expected, got) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(1.0),
        (a, b) => a == b,
    }
}

proptest! {
    #[test]
    fn every_read_equals_a_naive_recomputation(
        events in proptest::collection::vec((0i64..900_000, -20i32..20), 1..80),
        later in proptest::collection::vec(0i64..900_000, 1..6),
        shift in any::<bool>(),
    ) {
        let view = schema();
        let mut state = WindowState::new(layout(&view), 0);
        // In some cases mostly in order, with the times of one minute shuffled.
        let mut events: Vec<(i64, f64)> = events.iter().map(|(t, x)| (T0 + t, f64::from(*x) / 4.0)).collect();
        if shift {
            events.sort_by_key(|(t, x)| t / 60_000 * 1_000 + (*x * 4.0) as i64);
        }
        for (t, x) in &events {
            feed(&mut state, *t, *x);
        }
        let saved = WindowState::decode(&state.encode()).expect("what was encoded");
        prop_assert_eq!(saved.encode(), state.encode());
        let newest = events.iter().map(|(t, _)| *t).max().expect("an event");
        for t in later.iter().map(|later| newest + later).chain([newest]) {
            for (i, window) in WINDOWS.iter().enumerate() {
                for name in ["c", "s", "v", "lo", "hi", "f", "l", "d"] {
                    let got = read(&saved, &view, &format!("{name}{i}"), ReadAt::Named(t));
                    let expected = naive(&events, name, *window, t);
                    prop_assert!(got.is_some_and(|got| is_same(expected, got)),
                        "{name} of {window:?} at {t}: expected {expected:?}, got {got:?}");
                }
            }
        }
        // A time before the newest event is answered exactly or refused.
        for t in later.iter().map(|back| newest - back) {
            for (i, window) in WINDOWS.iter().enumerate() {
                for name in ["c", "s", "f", "l", "d"] {
                    if let Some(got) = read(&state, &view, &format!("{name}{i}"), ReadAt::Named(t)) {
                        let expected = naive(&events, name, *window, t);
                        prop_assert!(is_same(expected, got),
                            "{name} of {window:?} at {t}, before {newest}: expected {expected:?}, got {got:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_give_a_state_that_works(
        cut in any::<prop::sample::Index>(), damage in any::<u8>(), events in 1usize..30,
    ) {
        let view = schema();
        let mut state = WindowState::new(layout(&view), 0);
        for i in 0..events {
            feed(&mut state, T0 + i as i64 * 3_000, i as f64);
        }
        let mut bytes = state.encode();
        let place = cut.index(bytes.len());
        prop_assert!(WindowState::decode(&bytes[..place]).is_err());
        bytes[place] ^= damage;
        if let Ok(mut damaged) = WindowState::decode(&bytes) {
            feed(&mut damaged, T0 + 100_000, 1.0);
            for feature in view.features().iter().filter_map(|f| f.window.as_ref()) {
                if let Some(reading) = damaged.layout().reading(feature) {
                    let _ = damaged.read(&reading, ReadAt::Clock(T0 + 100_000));
                }
            }
            let _ = damaged.encode();
        }
    }
}

#[test]
fn windows_over_one_input_share_their_state() {
    let groups = |features: &str| {
        let view = view(&format!("ENTITY u SCHEMA x FLOAT INPUT y FLOAT INPUT {features}"));
        layout(&view).groups.iter().map(|g| (g.hop_ms / 60_000, g.hops)).collect::<Vec<_>>()
    };
    let sums =
        "a FLOAT AGG SUM x WINDOW 1h HOP 1h b FLOAT AGG SUM x WINDOW 24h HOP 1h c FLOAT AGG SUM x WINDOW 7d HOP 1h";
    assert_eq!(groups(sums), [(60, 168)]);
    // Functions of one window share its cells.
    assert_eq!(
        groups("a INT AGG COUNT x WINDOW 1h b FLOAT AGG SUM x WINDOW 1h c FLOAT AGG MEAN x WINDOW 1h"),
        [(1, 60)]
    );
    // Where one INPUT is all that makes an event, a bare COUNT is a count of it.
    let one = view("ENTITY u SCHEMA x FLOAT INPUT c INT AGG COUNT WINDOW 1h s FLOAT AGG SUM x WINDOW 1h");
    assert_eq!(layout(&one).groups.len(), 1);
    assert_eq!(groups("c INT AGG COUNT WINDOW 1h s FLOAT AGG SUM x WINDOW 1h").len(), 2);
    // A longer window in longer hops would need too many short ones, a shorter one comes for free.
    assert_eq!(groups("a FLOAT AGG SUM x WINDOW 1h b FLOAT AGG SUM x WINDOW 7d"), [(1, 60), (180, 56)]);
    assert_eq!(groups("a FLOAT AGG SUM x WINDOW 2d HOP 1d b FLOAT AGG SUM x WINDOW 7d HOP 1h"), [(60, 168)]);
    // A window that is read in the middle of its own hop begins that much earlier.
    assert_eq!(groups("a FLOAT AGG SUM x WINDOW 10h HOP 5h b FLOAT AGG SUM x WINDOW 12h HOP 1h"), [(60, 14)]);
    // Another input, another group.
    assert_eq!(groups("a FLOAT AGG SUM x WINDOW 1h b FLOAT AGG SUM y WINDOW 1h").len(), 2);
    // Sketches do not grow with hops: one is enough.
    let sketches = "a INT AGG APPROX_COUNT_DISTINCT x WINDOW 1h b INT AGG APPROX_COUNT_DISTINCT x WINDOW 7d";
    assert_eq!(groups(sketches), [(1, 7 * 24 * 60 + 180 - 1)]);
    let view = view("ENTITY u SCHEMA x FLOAT INPUT a FLOAT AGG LAST x WINDOW 1h b LIST AGG LAST_K 5 x WINDOW 7d");
    assert!(matches!(layout(&view).groups[..], [group] if group.kind == Kind::Latest(0, 5)));
}

#[test]
fn a_variance_survives_a_large_offset_and_a_sum_its_rounding() {
    let view = view("ENTITY u SCHEMA x FLOAT INPUT v FLOAT AGG VAR_POP x WINDOW 1h s FLOAT AGG SUM x WINDOW 1h");
    let mut state = WindowState::new(layout(&view), 0);
    // Quarters are exact at this size, so that the variance is known: that of 0, 0.25, 0.5, 0.75.
    for i in 0..4_000 {
        feed(&mut state, T0 + i * 500, 1e9 + (i % 4) as f64 / 4.0);
    }
    let at = ReadAt::Clock(T0 + 2_000_000);
    let variance = read(&state, &view, "v", at).flatten().expect("a variance");
    assert!((variance - 0.078_125).abs() < 1e-15, "{variance}");
    let mut state = WindowState::new(layout(&view), 0);
    for (i, x) in [1e16, 3.7, -1e16, 0.1].into_iter().enumerate() {
        feed(&mut state, T0 + i as i64, x);
    }
    let sum = read(&state, &view, "s", at).flatten().expect("a sum");
    assert!((sum - 3.8).abs() < 1e-12, "{sum}");
    for x in [f64::MAX, f64::MAX] {
        feed(&mut state, T0, x);
    }
    assert_eq!(read(&state, &view, "s", at), Some(Some(f64::MAX)));
}

#[test]
fn an_added_window_counts_from_then_on_and_the_others_keep_what_they_have() {
    let before = view("ENTITY u SCHEMA x FLOAT INPUT s FLOAT AGG SUM x WINDOW 1d HOP 1h l FLOAT AGG LAST x WINDOW 1d");
    let mut state = WindowState::new(layout(&before), 3);
    for i in 0..10 {
        feed(&mut state, T0 + i * 3_600_000, 1.0);
    }
    let words: Vec<&[u8]> = "ADD m FLOAT AGG MIN x WINDOW 1d HOP 1h ADD short FLOAT AGG SUM x WINDOW 1d HOP 30m \
                             ADD d INT AGG APPROX_COUNT_DISTINCT x WINDOW 1d"
        .split_whitespace()
        .map(str::as_bytes)
        .collect();
    let alteration = Alteration::parse(b"v", &mut Arguments::new(&words)).expect("an alteration");
    let after = alteration.applied_to(&before).expect("altered");
    let now = T0 + 9 * 3_600_000;
    // A state that was not fed since answers what it can.
    assert_eq!(read(&state, &after, "s", ReadAt::Clock(now)), Some(Some(10.0)));
    state.change_layout(layout(&after));
    assert_eq!(state.generation(), 3);
    assert_eq!(read(&state, &after, "s", ReadAt::Clock(now)), Some(Some(10.0)));
    assert_eq!(read(&state, &after, "l", ReadAt::Clock(now)), Some(Some(1.0)));
    assert_eq!(read(&state, &after, "m", ReadAt::Clock(now)), Some(None));
    let state_now = |state: &WindowState| {
        let at = ReadAt::Clock(now + 7_200_000);
        ["s", "short", "m", "d", "l"].map(|feature| read(state, &after, feature, at).flatten())
    };
    feed(&mut state, now + 7_200_000, 5.0);
    assert_eq!(state_now(&state), [Some(15.0), Some(15.0), Some(5.0), Some(1.0), Some(5.0)]);
    let saved = WindowState::decode(&state.encode()).expect("what was encoded");
    assert_eq!(state_now(&saved), state_now(&state));
}

#[test]
fn a_bare_count_goes_on_when_a_second_input_is_added() {
    let before = view("ENTITY u SCHEMA x FLOAT INPUT c INT AGG COUNT WINDOW 1h s FLOAT AGG SUM x WINDOW 1h");
    let mut state = WindowState::new(layout(&before), 0);
    for i in 0..3 {
        feed(&mut state, T0 + i, 2.0);
    }
    let words: Vec<&[u8]> = vec![b"ADD", b"y", b"FLOAT", b"INPUT"];
    let alteration = Alteration::parse(b"v", &mut Arguments::new(&words)).expect("an alteration");
    let after = alteration.applied_to(&before).expect("altered");
    let at = ReadAt::Clock(T0 + 10);
    let both = |state: &WindowState| ["c", "s"].map(|feature| read(state, &after, feature, at).flatten());
    assert_eq!(both(&state), [Some(3.0), Some(6.0)]);
    state.change_layout(layout(&after));
    assert_eq!(both(&state), [Some(3.0), Some(6.0)]);
    state.feed(&Event { time_ms: T0 + 5, arrived_ms: T0 + 5, inputs: &[None, Some(b"7")] });
    assert_eq!(both(&state), [Some(4.0), Some(6.0)]);
}

#[test]
fn a_state_that_outlives_its_definition_can_always_be_loaded_again() {
    let long = view("ENTITY u SCHEMA x FLOAT INPUT y FLOAT INPUT l LIST AGG LAST_K 500 x WINDOW 1h");
    let short =
        view("ENTITY u SCHEMA x FLOAT INPUT y FLOAT INPUT l LIST AGG LAST_K 5 x WINDOW 1h c INT AGG COUNT y WINDOW 1h");
    let mut state = WindowState::new(layout(&long), 0);
    for i in 0..500 {
        feed(&mut state, T0 + i, i as f64);
    }
    state.change_layout(layout(&short));
    let saved = WindowState::decode(&state.encode()).expect("what was encoded");
    let reading = saved.layout().reading(short.features()[2].window.as_ref().expect("a window")).expect("a group");
    let five = Value::List("[499,498,497,496,495]".into());
    assert_eq!(saved.read(&reading, ReadAt::Clock(T0 + 500)), Ok(Some(five)));
}

#[test]
fn a_vector_is_its_bytes_even_if_they_spell_numbers() {
    let view = view("ENTITY u SCHEMA e VECTOR 2 INPUT l VECTOR 2 AGG LAST e WINDOW 1h");
    let mut state = WindowState::new(layout(&view), 0);
    let spells = b"1.5,2.25";
    state.feed(&Event { time_ms: T0, arrived_ms: T0, inputs: &[Some(spells)] });
    let saved = WindowState::decode(&state.encode()).expect("what was encoded");
    let reading = saved.layout().reading(view.features()[1].window.as_ref().expect("a window")).expect("a group");
    let Ok(Some(Value::Vector(numbers))) = saved.read(&reading, ReadAt::Clock(T0)) else { panic!("a vector") };
    assert_eq!(numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(), spells);
}

#[test]
fn hops_that_are_filled_backwards_stay_within_the_bound() {
    let view = view("ENTITY u SCHEMA x FLOAT INPUT f FLOAT AGG FIRST x WINDOW 4096s HOP 1s");
    let mut state = WindowState::new(layout(&view), 0);
    for i in 0..=4_096 {
        feed(&mut state, T0 - i * 1_000, 1.0);
    }
    assert!(state.bytes() as u64 <= layout(&view).bytes_max(), "{}", state.bytes());
}

#[test]
fn a_sum_that_begins_to_round_keeps_every_hop() {
    let view = view(
        "ENTITY u SCHEMA x FLOAT INPUT s FLOAT AGG SUM x WINDOW 4096s HOP 1s v FLOAT AGG VAR_POP x WINDOW 4096s HOP 1s",
    );
    let mut state = WindowState::new(layout(&view), 0);
    for i in 0..4_000 {
        feed(&mut state, T0 + i * 1_000, 2.0);
    }
    // The first sum that is not exact gives all of them a second word.
    feed(&mut state, T0 + 2_000_000, 0.1);
    feed(&mut state, T0 + 2_000_000, 0.2);
    let at = ReadAt::Named(T0 + 4_000_000);
    let sum = read(&state, &view, "s", at).flatten().expect("a sum");
    assert!((sum - 8_000.3).abs() < 1e-9, "{sum}");
    assert!(read(&state, &view, "v", at).flatten().is_some_and(|v| v > 0.0 && v < 0.01));
    assert!(WindowState::decode(&state.encode()).is_ok());
}

#[test]
fn event_ids_are_kept_by_arrival() {
    let view = view("ENTITY u DEDUP 1m SCHEMA x FLOAT INPUT");
    let mut state = WindowState::new(layout(&view), 0);
    let mut remember = |id: &[u8], arrived_ms, forget_before_ms, ids_max| {
        state.remember(&Sighting { id, arrived_ms, entry: None, forget_before_ms, ids_max });
    };
    remember(b"live", T0, T0 - 60_000, 2);
    // Entries of the log that came earlier and are read later do not push it out.
    remember(b"old", T0 - 10_000, T0 - 70_000, 2);
    remember(b"older", T0 - 20_000, T0 - 80_000, 2);
    assert!(state.find(b"live", T0 + 1_000, 60_000).is_some());
    assert!(state.find(b"older", T0, 60_000).is_none() && state.find(b"old", T0, 60_000).is_some());
    assert!(state.find(b"live", T0 + 60_001, 60_000).is_none());
}

#[test]
fn an_event_ahead_of_the_clock_pushes_nothing_out() {
    let view = view(
        "ENTITY u SCHEMA x FLOAT INPUT c INT AGG COUNT x WINDOW 10s HOP 1s l FLOAT AGG LAST x WINDOW 10s HOP 1s \
         d INT AGG APPROX_COUNT_DISTINCT x WINDOW 10s HOP 1s",
    );
    let mut state = WindowState::new(layout(&view), 0);
    let mut feed_at = |time_ms: i64, x: &str| {
        state.feed(&Event { time_ms, arrived_ms: T0, inputs: &[Some(x.as_bytes())] });
    };
    feed_at(T0 - 5_000, "1");
    feed_at(T0 + 240_000, "2");
    feed_at(T0 - 4_000, "3");
    let at = |t| ["c", "l", "d"].map(|feature| read(&state, &view, feature, ReadAt::Clock(t)).flatten());
    assert_eq!(at(T0), [Some(2.0), Some(3.0), Some(3.0)]);
    assert_eq!(at(T0 + 240_000), [Some(1.0), Some(2.0), Some(1.0)]);
}

#[test]
fn what_comes_too_late_is_told_and_not_counted() {
    let view = view("ENTITY u SCHEMA x FLOAT INPUT c INT AGG COUNT x WINDOW 10s HOP 1s");
    let mut state = WindowState::new(layout(&view), 0);
    assert_eq!(feed(&mut state, T0, 1.0), Fed::default());
    assert_eq!(feed(&mut state, T0 - 10_000, 1.0), Fed { is_late: true, is_too_late: false });
    assert_eq!(feed(&mut state, T0 - 10_001, 1.0), Fed { is_late: true, is_too_late: true });
    assert_eq!(read(&state, &view, "c", ReadAt::Named(T0)), Some(Some(2.0)));
    assert_eq!(read(&state, &view, "c", ReadAt::Named(T0 - 1)), None);
}
