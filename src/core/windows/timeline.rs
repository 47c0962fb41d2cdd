//! A timeline: one cell for each hop that holds events, in order of time.

/// Cells by hop. `T` is what a hop holds.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct Timeline<T> {
    /// The hop's number (event time / hop) and its cell; rising.
    cells: Vec<(i64, T)>,
}

impl<T> Default for Timeline<T> {
    fn default() -> Self {
        Timeline { cells: Vec::new() }
    }
}

impl<T> Timeline<T> {
    /// The cell of a hop, made if it is not there.
    pub(super) fn cell(&mut self, hop: i64, new: impl FnOnce() -> T) -> &mut T {
        // Events mostly come in order: the last cell is looked at first.
        let place = match self.cells.last() {
            Some((last, _)) if *last == hop => self.cells.len() - 1,
            Some((last, _)) if *last < hop => self.cells.len(),
            _ => self.cells.partition_point(|(h, _)| *h < hop),
        };
        if self.cells.get(place).is_none_or(|(h, _)| *h != hop) {
            if self.cells.len() == self.cells.capacity() {
                // A timeline grows to its bound and stays there: doubling would waste half of it.
                self.cells.reserve_exact(1 + self.cells.len() / 8);
            }
            self.cells.insert(place, (hop, new()));
        }
        &mut self.cells[place].1
    }

    /// Removes cells before a hop, showing each to `see`.
    pub(super) fn forget_before(&mut self, hop: i64, see: impl FnMut(T)) {
        if self.cells.first().is_some_and(|(first, _)| *first < hop) {
            let end = self.cells.partition_point(|(h, _)| *h < hop);
            self.cells.drain(..end).map(|(_, cell)| cell).for_each(see);
        }
    }

    /// The cells of hops in `from..to`, in order.
    pub(super) fn range(&self, from: i64, to: i64) -> impl Iterator<Item = &T> + Clone {
        let start = self.cells.partition_point(|(h, _)| *h < from);
        self.cells[start..].iter().take_while(move |(h, _)| *h < to).map(|(_, cell)| cell)
    }

    /// All cells.
    pub(super) fn cells(&self) -> impl Iterator<Item = &T> {
        self.cells.iter().map(|(_, cell)| cell)
    }

    /// Goes over to hops that are `factor` times shorter: what was in a long hop counts from its start.
    pub(super) fn divide_hops(&mut self, factor: i64) {
        self.cells.iter_mut().for_each(|(hop, _)| *hop *= factor);
    }

    /// Bytes on the heap, less what cells hold elsewhere.
    pub(super) fn heap_bytes(&self) -> usize {
        self.cells.capacity() * size_of::<(i64, T)>()
    }

    /// Is it as this code writes it? Hops rise, none is after `newest_hop`, and they are small enough to reckon with.
    pub(super) fn is_sound(&self, newest_hop: i64, mut cell_is_sound: impl FnMut(&T) -> bool) -> bool {
        self.cells.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && self.cells.last().is_none_or(|(hop, _)| *hop <= newest_hop)
            && self.cells.iter().all(|(hop, cell)| hop.unsigned_abs() < 1 << 56 && cell_is_sound(cell))
    }
}
