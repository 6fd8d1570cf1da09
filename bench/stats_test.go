package bench

import (
	"math"
	"slices"
	"time"
)

// quantile returns the value below which a share p of all lie, 0 of none. It sorts
// what it is given.
func quantile[T float64 | time.Duration](all []T, p float64) T {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	i := int(math.Ceil(p*float64(len(all)))) - 1
	return all[min(max(i, 0), len(all)-1)]
}

// median leaves the order as it is.
func median[T float64 | time.Duration](all []T) T { return quantile(slices.Clone(all), 0.5) }

// ms prints durations in tables.
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// per is a ratio, 0 if there is nothing to divide by.
func per[A, B int | int64 | float64 | time.Duration](a A, b B) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
