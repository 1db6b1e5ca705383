"""What one training needs: settings, methods, progress, evaluation, the run that comes out."""
