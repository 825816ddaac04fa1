"""The engine: frames, time, queues, threads, config, report. It knows no codec, model or
drawing."""
