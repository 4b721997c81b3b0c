// Compiled for each instruction set (common/for_each_isa.h).

// Marks the pixels of one channel that are above their upper, left and lower neighbours. Rows are
// interleaved; a missing neighbour counts as 0.
template <class T>
void mark_peaks(const T* up, const T* row, const T* down, int width, int channel, uint8_t* marks) {
  const T* middle = row + channel;
  const T* above = up + channel;
  const T* below = down + channel;
  marks[0] = middle[0] > above[0] && middle[0] > below[0] && middle[0] > 0;
  for (int x = 1; x < width; ++x) {
    const T value = middle[3 * x];
    marks[x] = (value > above[3 * x]) & (value > below[3 * x]) & (value > middle[3 * (x - 1)]);
  }
}
