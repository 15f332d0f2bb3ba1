package kmsg_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
)

// fill is a FIFO in place of the log, that can be filled at will.
func fill(t *testing.T) (feed *kmsg.Feed, put func(record string)) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kmsg")
	require.NoError(t, unix.Mkfifo(name, 0o600))
	writer, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { writer.Close() })
	feed, err = kmsg.OpenFeed(name)
	require.NoError(t, err)
	t.Cleanup(func() { feed.Close() })
	return feed, func(record string) {
		_, err := writer.WriteString(record)
		require.NoError(t, err)
	}
}

func texts(news kmsg.News) (all []string) {
	for _, r := range news.Records {
		all = append(all, r.Text)
	}
	return all
}

func TestFeed_EachReaderGetsWhatIsNewToIt(t *testing.T) {
	feed, put := fill(t)
	read := func(who string) kmsg.News {
		t.Helper()
		news, err := feed.Read(who)
		require.NoError(t, err)
		return news
	}
	require.Empty(t, read("a").Records, "it does not wait")
	put("6,7,1,-;first\n")
	require.Equal(t, []string{"first"}, texts(read("a")))
	require.Zero(t, read("a").Lost, "what came before it was read by nobody")
	require.Empty(t, read("b").Records, "a FIFO has no past")
	put("6,8,1,-;second\n")
	require.Equal(t, []string{"second"}, texts(read("b")))
	put("12,9,1,-;a program's\n")
	require.Empty(t, read("b").Records)
	put("6,13,1,-;after three lost ones\n")
	news := read("a")
	assert.Equal(t, []string{"second", "after three lost ones"}, texts(news))
	assert.EqualValues(t, 3, news.Lost)
	news = read("b")
	assert.Equal(t, []string{"after three lost ones"}, texts(news))
	assert.EqualValues(t, 3, news.Lost)
	put("garbage")
	_, err := feed.Read("a")
	require.ErrorContains(t, err, "garbage")
	assert.Empty(t, read("b").Records)
}

// A FIFO can't be read twice.
func TestFeed_ReadsOnceForAllThatWereAnnounced(t *testing.T) {
	feed, put := fill(t)
	feed.Expect("a")
	feed.Expect("b")
	put("6,7,1,-;before anybody has asked\n")
	for _, who := range []string{"a", "b"} {
		news, err := feed.Read(who)
		require.NoError(t, err)
		require.Equal(t, []string{"before anybody has asked"}, texts(news))
	}
	feed.Expect("too late")
	news, err := feed.Read("too late")
	require.NoError(t, err)
	require.Empty(t, news.Records)
}

// Who is announced while the log is read, or later, but before anybody has asked, gets all of it.
func TestFeed_BeginsBeforeAnybodyAsks(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kmsg")
	require.NoError(t, unix.Mkfifo(name, 0o600))
	log, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	defer log.Close()
	feed, err := kmsg.OpenFeed(name)
	require.NoError(t, err)
	defer feed.Close()
	_, err = log.WriteString("6,7,1,-;there already\n")
	require.NoError(t, err)

	feed.Expect("a")
	require.Eventually(t, func() bool {
		n, err := unix.IoctlGetInt(int(log.Fd()), unix.TIOCINQ)
		return err == nil && n == 0
	}, 20*time.Second, time.Millisecond, "it is read")
	feed.Expect("b")
	for _, who := range []string{"a", "b"} {
		news, err := feed.Read(who)
		require.NoError(t, err)
		assert.Equal(t, []string{"there already"}, texts(news), who)
		assert.Zero(t, news.Lost)
	}
}

// What Expect has begun may come to read only after Close, when another file has the number.
func TestFeed_ReadsNothingAfterClose(t *testing.T) {
	feed, _ := fill(t)
	require.NoError(t, feed.Close())
	other := filepath.Join(t.TempDir(), "other")
	require.NoError(t, os.WriteFile(other, []byte("6,7,1,-;another's\n"), 0o600))
	file, err := os.Open(other)
	require.NoError(t, err)
	defer file.Close()
	news, err := feed.Read("a")
	require.ErrorIs(t, err, unix.EBADF)
	assert.Empty(t, news.Records)
}

func TestFeed_TellsWhoAsksFirstWhatWasWrong(t *testing.T) {
	feed, put := fill(t)
	put("garbage")
	feed.Expect("a")
	_, err := feed.Read("a")
	require.ErrorContains(t, err, "garbage", "whoever has read it")
	_, err = feed.Read("a")
	require.NoError(t, err)
}

func TestFeed_BoundsWhatNobodyAsksFor(t *testing.T) {
	feed, put := fill(t)
	_, err := feed.Read("idle")
	require.NoError(t, err)
	const records = 5000
	for i := range records {
		put("6," + strconv.Itoa(i+1) + ",1,-;x\n")
		news, err := feed.Read("busy")
		require.NoError(t, err)
		require.Len(t, news.Records, 1)
	}
	news, err := feed.Read("idle")
	require.NoError(t, err)
	assert.EqualValues(t, records, len(news.Records)+int(news.Lost))
	assert.Less(t, len(news.Records), records)
}

// Whoever comes later gets all that the kernel still has, and the others nothing twice.
func TestFeed_OfTheRealLog(t *testing.T) {
	feed, err := kmsg.OpenFeed(kmsg.Device)
	if err != nil {
		t.Skip(err)
	}
	defer feed.Close()
	began := time.Now()
	first, err := feed.Read("first")
	require.NoError(t, err)
	require.NotEmpty(t, first.Records)
	oldest := first.Records[0]
	second, err := feed.Read("second")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(second.Records), len(first.Records))
	if second.Records[0].Sequence == oldest.Sequence { // else the kernel has dropped it
		assert.Equal(t, oldest.Text, second.Records[0].Text)
	}
	again, err := feed.Read("first")
	require.NoError(t, err)
	for _, r := range again.Records {
		assert.Greater(t, r.Sequence, first.Records[len(first.Records)-1].Sequence)
	}
	for _, r := range first.Records {
		assert.Zero(t, r.Facility)
		assert.False(t, r.At.After(began.Add(time.Hour)), r.Text)
	}
	assert.False(t, strings.Contains(oldest.Text, "\n"))
}

func TestOpenFeed_WithoutTheLog(t *testing.T) {
	_, err := kmsg.OpenFeed(filepath.Join(t.TempDir(), "kmsg"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
